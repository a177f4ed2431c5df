//! Servers that answer, are somebody else, hang, break off or are not there.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use rcgen::{CertificateParams, KeyPair};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;

use super::*;
use crate::facts::EvictionThresholds;

/// A node whose kubelet has a kubeconfig for this server.
struct Node(tempfile::TempDir);

impl Node {
    fn new(server: &str, authority: Option<&str>) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let authority = authority.map_or_else(String::new, |pem| {
            std::fs::write(dir.path().join("ca.crt"), pem).expect("write");
            ", certificate-authority: ca.crt".to_owned()
        });
        let text = format!(
            "current-context: c\ncontexts: [{{name: c, context: {{cluster: k, user: u}}}}]\n\
             clusters: [{{name: k, cluster: {{server: '{server}'{authority}}}}}]\n\
             users: [{{name: u, user: {{token: very-secret}}}}]\n"
        );
        std::fs::write(dir.path().join("kubelet.conf"), text).expect("write");
        Node(dir)
    }

    async fn look(&self) -> ControlPlanePath {
        let kubelet = kubelet("/kubelet.conf");
        let path = ControlPlaneSource::new(HostRoot::new(self.0.path())).look(Some(&kubelet)).await;
        path.expect("a kubeconfig")
    }

    async fn error(&self) -> LookError {
        self.look().await.answer.error().cloned().expect("no answer")
    }
}

fn kubelet(kubeconfig: &str) -> Kubelet {
    Kubelet {
        node_name: None,
        config_path: None,
        kubeconfig_path: Some(kubeconfig.to_owned()),
        server: None,
        healthz_port: 0,
        runtime_endpoint: None,
        eviction: EvictionThresholds::default(),
        config_error: None,
    }
}

/// A certificate for 127.0.0.1 that is its own authority: PEM, and what a server needs.
fn certificate() -> (String, TlsAcceptor) {
    let key = KeyPair::generate().expect("a key");
    let params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).expect("a name");
    let certificate = params.self_signed(&key).expect("signed");
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], PrivateKeyDer::Pkcs8(key.serialize_der().into()))
        .expect("a pair");
    (certificate.pem(), TlsAcceptor::from(Arc::new(config)))
}

/// Does the same with each connection.
async fn serve<F>(each: impl Fn(TcpStream) -> F + Send + 'static) -> (SocketAddr, JoinSet<()>)
where
    F: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let address = listener.local_addr().expect("bound");
    let mut server = JoinSet::new();
    server.spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            connections.spawn(each(stream));
        }
    });
    (address, server)
}

/// Answers 401 over TLS, keeps the connection open, and hands on what it was asked.
async fn api_server(acceptor: TlsAcceptor) -> (SocketAddr, JoinSet<()>, mpsc::UnboundedReceiver<String>) {
    let (asked, requests) = mpsc::unbounded_channel();
    let (address, server) = serve(move |stream| {
        let (acceptor, asked) = (acceptor.clone(), asked.clone());
        async move {
            let Ok(mut stream) = acceptor.accept(stream).await else { return };
            let mut request = vec![0; 4096];
            while let Ok(length @ 1..) = stream.read(&mut request).await {
                asked.send(String::from_utf8_lossy(&request[..length]).into_owned()).ok();
                stream.write_all(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n").await.ok();
            }
        }
    })
    .await;
    (address, server, requests)
}

#[tokio::test]
async fn any_status_is_an_answer_and_no_credentials_are_sent() {
    let (pem, acceptor) = certificate();
    let (address, _server, mut requests) = api_server(acceptor).await;
    let node = Node::new(&format!("https://{address}"), Some(&pem));
    let path = node.look().await;
    assert_eq!(path, ControlPlanePath { server: format!("https://{address}"), answer: Seen::Yes(401) });
    let request = requests.recv().await.expect("asked").to_lowercase();
    assert!(
        request.starts_with("get /version http/1.1\r\n") && request.contains("user-agent: nodevitals/"),
        "{request}"
    );
    assert!(!request.contains("authorization") && !request.contains("secret"), "{request}");
}

#[tokio::test]
async fn each_look_makes_a_connection_of_its_own() {
    let (pem, acceptor) = certificate();
    let (address, server, _requests) = api_server(acceptor).await;
    let node = Node::new(&format!("https://{address}"), Some(&pem));
    assert_eq!(node.look().await.answer, Seen::Yes(401));
    drop(server);
    assert_eq!(node.error().await.reason, Reason::Refused);
}

#[tokio::test]
async fn a_server_that_is_somebody_else_is_a_certificate_error() {
    let (_, acceptor) = certificate();
    let (address, _server, _requests) = api_server(acceptor).await;
    let (other, _) = certificate();
    let error = Node::new(&format!("https://{address}"), Some(&other)).error().await;
    assert!(error.detail.starts_with("certificate: "), "{error}");
}

#[tokio::test]
async fn nobody_listens() {
    let address = TcpListener::bind("127.0.0.1:0").await.expect("bind").local_addr().expect("bound");
    let error = Node::new(&format!("https://{address}"), Some(&certificate().0)).error().await;
    assert!(error.reason == Reason::Refused && error.detail.starts_with("refused: "), "{error}");
}

#[tokio::test]
async fn no_connection_and_no_answer_are_told_apart() {
    let silent = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let address = silent.local_addr().expect("bound");
    let node = Node::new(&format!("https://{address}"), Some(&certificate().0));
    let error = node.error().await;
    assert!(error.reason == Reason::TimedOut && error.detail.contains("no connection"), "{error}");
    let error = Node::new(&format!("http://{address}"), None).error().await;
    assert!(error.reason == Reason::TimedOut && error.detail.contains("no answer"), "{error}");
}

#[tokio::test]
async fn a_server_that_breaks_off() {
    let (address, _server) = serve(|stream| async move { drop(stream) }).await;
    for scheme in ["https", "http"] {
        let error = Node::new(&format!("{scheme}://{address}"), Some(&certificate().0)).error().await;
        assert!(error.detail.starts_with("reset: "), "{scheme}: {error}");
    }
}

#[tokio::test]
async fn a_kubeconfig_that_cannot_be_used() {
    let damaged = "-----BEGIN CERTIFICATE-----\n!!!\n-----END CERTIFICATE-----\n";
    let error = Node::new("https://127.0.0.1:1", Some(damaged)).error().await;
    assert!(error.what == "/kubelet.conf" && error.reason == Reason::Malformed, "{error}");
    let node = Node::new("https://127.0.0.1:1", Some(""));
    std::fs::remove_file(node.0.path().join("ca.crt")).expect("rm");
    assert_eq!(node.error().await.what, "/ca.crt");
    nix::unistd::mkfifo(&node.0.path().join("ca.crt"), nix::sys::stat::Mode::S_IRUSR).expect("mkfifo");
    assert_eq!(node.error().await.reason, Reason::WrongKind);
}

#[tokio::test]
async fn no_kubeconfig_no_path() {
    let mut source = ControlPlaneSource::new(HostRoot::new(Path::new("/")));
    assert_eq!(source.look(None).await.expect_err("none").reason, Reason::Missing);
    let error = source.look(Some(&kubelet("/no/such/file"))).await.expect_err("none");
    assert_eq!(error.reason, Reason::Missing);
}

#[test]
fn errors_of_the_kernel_and_of_names() {
    let start = |error: std::io::Error| explain("https://x", &error).detail.split(':').next().map(str::to_owned);
    for (errno, kind) in [
        (Errno::EHOSTUNREACH, "unreachable"),
        (Errno::ENETUNREACH, "unreachable"),
        (Errno::EPERM, "denied by this node"),
        (Errno::ECONNRESET, "reset"),
        (Errno::ETIMEDOUT, "timed out"),
    ] {
        assert_eq!(start(errno.into()).as_deref(), Some(kind));
    }
    let name = std::io::Error::other("failed to lookup address information: Name or service not known");
    assert_eq!(start(name).as_deref(), Some("name resolution"));
}
