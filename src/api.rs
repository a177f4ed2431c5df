//! The Kubernetes API: clients whose calls all have deadlines.

mod answer;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, anyhow};
use http::header::{HeaderValue, USER_AGENT};
use kube::config::KubeConfigOptions;
use kube::{Client, Config};
use serde_json::Value;

#[cfg(test)]
pub(crate) use answer::testing::answered_by;
pub(crate) use answer::{asked, send};

/// Longest wait for a TCP connection.
const CONNECT: Duration = Duration::from_secs(3);
/// Longest silence on a connection of the client for single calls. Longer than any admission webhook may take (30 s),
/// so that a patch that a webhook holds up is not given up while it still may pass.
const SILENCE: Duration = Duration::from_secs(40);

/// Longest wait for one answer to a command that a person waits for.
pub(crate) const ANSWER_WITHIN: Duration = Duration::from_secs(60);
/// Objects that are asked for at once.
const PAGE: usize = 200;

/// Sends a request for a JSON answer; an answer that does not come is an error too.
pub(crate) async fn call(client: &Client, request: http::Request<Vec<u8>>) -> kube::Result<Value> {
    let late = || kube::Error::Service(format!("no answer within {} s", ANSWER_WITHIN.as_secs()).into());
    tokio::time::timeout(ANSWER_WITHIN, client.request(request)).await.unwrap_or_else(|_| Err(late()))
}

/// Reads `path`.
pub(crate) async fn get(client: &Client, path: &str) -> kube::Result<Value> {
    call(client, http::Request::get(path).body(Vec::new()).map_err(kube::Error::HttpError)?).await
}

/// Hands on all objects of a list, page by page. `query` is what it is selected by, escaped, or empty.
pub(crate) async fn list(client: &Client, path: &str, query: &str, each: &mut dyn FnMut(&Value)) -> kube::Result<()> {
    let mut next = String::new();
    loop {
        let page = get(client, &format!("{path}?limit={PAGE}&{query}{next}")).await?;
        page["items"].as_array().into_iter().flatten().for_each(&mut *each);
        match page["metadata"]["continue"].as_str() {
            // It is base64 for addresses, and needs no escape.
            Some(token) if !token.is_empty() => next = format!("&continue={token}"),
            _ => return Ok(()),
        }
    }
}

/// What is wrong, in the API server's own words where it answered.
pub(crate) fn said(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => format!("{}: {}", status.code, status.message),
        other => chain(other),
    }
}

/// Clients of one API server.
#[derive(Clone)]
pub(crate) struct Api {
    /// For single calls. Every call is wrapped in a deadline of its own besides.
    pub(crate) unary: Client,
    /// For watches, which may be silent for minutes.
    pub(crate) watch: Client,
    /// The server's address, for messages.
    pub(crate) server: String,
}

// No doc comment: clap would make it the description of each command that takes these options.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Server {
    /// Kubeconfig file for the API server; without it: the Pod's own service account, KUBECONFIG, or ~/.kube/config
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,

    /// Context of the kubeconfig file to use instead of its current one
    #[arg(long, value_name = "NAME")]
    context: Option<String>,
}

impl Server {
    /// The same server, as options of kubectl.
    pub(crate) fn for_kubectl(&self) -> Vec<OsString> {
        let file = self.kubeconfig.as_ref().map(|file| ["--kubeconfig".into(), file.clone().into_os_string()]);
        let context = self.context.as_ref().map(|name| ["--context".into(), OsString::from(name)]);
        [file, context].into_iter().flatten().flatten().collect()
    }

    /// Connects to it; nothing is sent yet.
    pub(crate) async fn connect(&self) -> anyhow::Result<Api> {
        connect(self.kubeconfig.as_deref(), self.context.as_deref()).await
    }
}

/// Connects by a kubeconfig file, or from inside a pod, or by the default kubeconfig (`$KUBECONFIG`, `~/.kube/config`).
/// Nothing is sent yet.
pub(crate) async fn connect(kubeconfig: Option<&Path>, context: Option<&str>) -> anyhow::Result<Api> {
    let options = KubeConfigOptions { context: context.map(Into::into), ..KubeConfigOptions::default() };
    if kubeconfig.is_none()
        && let Ok(config) = Config::incluster()
    {
        return Api::from_config(config);
    }
    let (merged, files) = crate::kubeconfig::read(kubeconfig)?;
    let config = Config::from_custom_kubeconfig(merged, &options)
        .await
        .map_err(|error| anyhow!("kubeconfig {files}: {}; give a valid file with --kubeconfig", chain(&error)))?;
    Api::from_config(config)
}

/// An error with all its causes, in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let said = error.to_string();
        if !text.contains(&said) {
            text = format!("{text}: {said}");
        }
        cause = error.source();
    }
    text
}

impl Api {
    /// Clients for this configuration, made safe: kube's defaults retry 429 and 503 for minutes and never time out.
    pub(crate) fn from_config(mut config: Config) -> anyhow::Result<Self> {
        config.default_retry = false;
        config.connect_timeout = Some(CONNECT);
        config.read_timeout = Some(SILENCE);
        config.reset_reader_on_write = true;
        config.headers.push((USER_AGENT, HeaderValue::from_static(concat!("nodevitals/", env!("CARGO_PKG_VERSION")))));
        let server = config.cluster_url.to_string();
        let mut watching = config.clone();
        watching.read_timeout = None;
        let unary = client(config).with_context(|| format!("API server {server}"))?;
        let watch = client(watching).with_context(|| format!("API server {server}"))?;
        Ok(Api { unary, watch, server })
    }
}

/// A client. Where neither the configuration nor this machine has a CA it trusts nobody, and says so: that costs what is behind
/// https, and nothing else.
fn client(mut config: Config) -> kube::Result<Client> {
    let nobody = config.root_cert.is_none() && !config.accept_invalid_certs;
    match Client::try_from(config.clone()) {
        Err(error) if nobody => {
            let server = config.cluster_url.to_string();
            config.root_cert = Some(Vec::new());
            let client = Client::try_from(config)?;
            let advice = "give certificate-authority in the kubeconfig, or install the machine's CA certificates";
            tracing::warn!(server, error = chain(&error), advice, "no certificate of a server can be trusted");
            Ok(client)
        }
        other => other,
    }
}

/// The ways from a pod of the agent to the API server, best first: the address that the kubelet uses, which needs
/// neither kube-proxy nor DNS, then the Service's. The credentials are the pod's own in both.
pub(crate) fn from_pod(kubelet_server: Option<&str>) -> anyhow::Result<Vec<Api>> {
    let config =
        Config::incluster().context("not inside a pod with a ServiceAccount, and no --kubeconfig was given")?;
    let mut ways = Vec::new();
    if let Some(server) = kubelet_server
        && let Ok(url) = server.parse()
    {
        let mut direct = config.clone();
        direct.cluster_url = url;
        ways.push(Api::from_config(direct)?);
    }
    ways.push(Api::from_config(config)?);
    Ok(ways)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[tokio::test]
    async fn the_token_of_a_login_command_is_where_the_kubeconfig_says() {
        let said = |key: &str| {
            let answer = r#"{"credential":{"a.token":["x",{"of":"T"}]}}"#;
            let command = json!({"cmd-path": "/bin/echo", "cmd-args": answer, "token-key": key});
            let mut config = Config::new("http://127.0.0.1:1".parse().expect("an address"));
            config.auth_info = serde_json::from_value(json!({"auth-provider": {"name": "gcp", "config": command}}))
                .expect("a user of a kubeconfig");
            Api::from_config(config).map_or_else(|error| format!("{error:#}"), |_| "a token".into())
        };
        assert_eq!(said("{.credential['a.token'][1].of}"), "a token");
        for (key, why) in [
            ("{.credential['a.token'][1]}", "is not a string"),
            ("{.credential.token}", "not found"),
            ("{.credential['a.token'][7]}", "not found"),
            ("{.credential[*]}", "neither a name nor a number"),
            ("{.credential['a.token}", "neither a name nor a number"),
        ] {
            assert!(said(key).contains(why), "{key}: {}", said(key));
        }
    }
}
