//! Servers for tests: with certificates of their own, that answer, hang or break off.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, date_time_ymd};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;

/// An authority.
pub(super) fn authority() -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::new(vec![]).expect("no names");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("signed")
}

/// A server with a certificate of this authority, for this name, good from one year to another.
pub(super) fn server_of(authority: &CertifiedIssuer<'static, KeyPair>, name: &str, years: [i32; 2]) -> TlsAcceptor {
    let key = KeyPair::generate().expect("a key");
    let mut params = CertificateParams::new(vec![name.to_owned()]).expect("a name");
    [params.not_before, params.not_after] = years.map(|year| date_time_ymd(year, 1, 1));
    let certificate = params.signed_by(&key, authority).expect("signed");
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], PrivateKeyDer::Pkcs8(key.serialize_der().into()))
        .expect("a pair");
    TlsAcceptor::from(Arc::new(config))
}

/// Good today.
pub(super) const GOOD: [i32; 2] = [2000, 2100];

/// Does the same with each connection.
pub(super) async fn serve<F>(each: impl Fn(TcpStream) -> F + Send + 'static) -> (SocketAddr, JoinSet<()>)
where
    F: Future<Output = ()> + Send + 'static,
{
    serve_at("127.0.0.1:0", each).await
}

/// Listens there. The port of a server that has just ended stays taken until its task has, and until a child that another thread
/// forked meanwhile has become its program.
pub(super) async fn listen(at: &str) -> TcpListener {
    let mut tries = 100;
    loop {
        match TcpListener::bind(at).await {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && tries > 0 => tries -= 1,
            bound => return bound.expect("bind"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// The same at this address.
pub(super) async fn serve_at<F>(at: &str, each: impl Fn(TcpStream) -> F + Send + 'static) -> (SocketAddr, JoinSet<()>)
where
    F: Future<Output = ()> + Send + 'static,
{
    let listener = listen(at).await;
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

/// An API server, what it was asked, and how many connections it had.
pub(super) struct Api {
    pub(super) address: SocketAddr,
    pub(super) requests: mpsc::UnboundedReceiver<String>,
    pub(super) connections: Arc<AtomicUsize>,
    pub(super) server: JoinSet<()>,
}

/// Answers with this head over TLS, and keeps the connection open.
pub(super) async fn api_server(acceptor: TlsAcceptor, head: &'static str) -> Api {
    api_server_at("127.0.0.1:0", acceptor, head).await
}

/// The same at this address.
pub(super) async fn api_server_at(at: &str, acceptor: TlsAcceptor, head: &'static str) -> Api {
    api_server_saying(at, acceptor, move || head.to_owned()).await
}

/// The same with a head that is made for each answer.
pub(super) async fn api_server_saying<F>(at: &str, acceptor: TlsAcceptor, head: F) -> Api
where
    F: Fn() -> String + Clone + Send + 'static,
{
    let (asked, requests) = mpsc::unbounded_channel();
    let connections = Arc::<AtomicUsize>::default();
    let count = Arc::clone(&connections);
    let (address, server) = serve_at(at, move |stream| {
        let (acceptor, asked, head) = (acceptor.clone(), asked.clone(), head.clone());
        count.fetch_add(1, Ordering::SeqCst);
        async move {
            let Ok(mut stream) = acceptor.accept(stream).await else { return };
            let mut request = vec![0; 4096];
            while let Ok(length @ 1..) = stream.read(&mut request).await {
                asked.send(String::from_utf8_lossy(&request[..length]).into_owned()).ok();
                stream.write_all(format!("HTTP/1.1 {}\r\nContent-Length: 0\r\n\r\n", head()).as_bytes()).await.ok();
            }
        }
    })
    .await;
    Api { address, requests, connections, server }
}

/// A port on which nobody listens.
pub(super) async fn free() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").await.expect("bind").local_addr().expect("bound")
}
