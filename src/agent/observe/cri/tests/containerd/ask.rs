//! What the kubelet asks of a runtime: pods and containers made and removed.

use futures::StreamExt as _;

use super::*;

const RUN: &str = "/runtime.v1.RuntimeService/RunPodSandbox";
const CREATE: &str = "/runtime.v1.RuntimeService/CreateContainer";
const START: &str = "/runtime.v1.RuntimeService/StartContainer";
const STOP_SANDBOX: &str = "/runtime.v1.RuntimeService/StopPodSandbox";
const REMOVE_SANDBOX: &str = "/runtime.v1.RuntimeService/RemovePodSandbox";
const REMOVE: &str = "/runtime.v1.RuntimeService/RemoveContainer";

#[derive(Clone, PartialEq, prost::Message)]
struct Sandbox {
    #[prost(message, optional, tag = "1")]
    config: Option<SandboxConfig>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct SandboxConfig {
    #[prost(message, optional, tag = "1")]
    metadata: Option<messages::Metadata>,
    #[prost(message, optional, tag = "8")]
    linux: Option<LinuxConfig>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct LinuxConfig {
    #[prost(message, optional, tag = "2")]
    security: Option<Security>,
}

/// `LinuxSandboxSecurityContext`.
#[derive(Clone, PartialEq, prost::Message)]
struct Security {
    #[prost(message, optional, tag = "1")]
    options: Option<messages::NamespaceOption>,
}

/// `RunPodSandboxResponse`, `CreateContainerResponse`, `RemoveContainerRequest`: an id.
#[derive(Clone, PartialEq, prost::Message)]
struct Id {
    #[prost(string, tag = "1")]
    id: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Container {
    #[prost(string, tag = "1")]
    sandbox: String,
    #[prost(message, optional, tag = "2")]
    config: Option<ContainerConfig>,
    #[prost(message, optional, tag = "3")]
    sandbox_config: Option<SandboxConfig>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ContainerConfig {
    #[prost(message, optional, tag = "1")]
    metadata: Option<Id>,
    #[prost(message, optional, tag = "2")]
    image: Option<Id>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Empty {}

fn config(name: &str, attempt: u32, on_host_network: bool) -> SandboxConfig {
    let name = format!("{name}-{attempt}");
    let network = if on_host_network { messages::NODE } else { 0 };
    let security = Security { options: Some(messages::NamespaceOption { network }) };
    SandboxConfig {
        metadata: Some(messages::Metadata { uid: format!("uid-{name}"), name, namespace: "default".into() }),
        linux: Some(LinuxConfig { security: Some(security) }),
    }
}

/// One who makes pods.
pub(super) struct Asking(Connection);

impl Asking {
    /// Connects, and gives the runtime the image of sandboxes.
    pub(super) async fn of(containerd: &Containerd) -> Self {
        let images = cache().join("pause.tar");
        containerd.ctr(&["images", "import", images.to_str().expect("a path of text")]);
        Asking(
            Connection::open(SOCKET, &containerd.socket(), Arc::default(), Arc::default()).await.expect("it listens"),
        )
    }

    /// Makes a pod with the node's network, or with one of its own; answers its id, or what the runtime says.
    pub(super) async fn sandbox(&self, name: &str, attempt: u32, on_host_network: bool) -> Result<String, String> {
        let request = Sandbox { config: Some(config(name, attempt, on_host_network)) };
        let answer = self.0.call_within::<_, Id>(PATIENCE, RUN, request).await;
        answer.map(|answer| answer.id).map_err(|error| error.detail)
    }

    /// Makes so many containers in a sandbox.
    pub(super) async fn containers(&self, sandbox: &str, round: u32, count: u32) -> Vec<String> {
        let one =
            |number: u32| self.container(sandbox, round, format!("c-{round}-{number}"), "docker.io/library/pause:test");
        futures::stream::iter(0..count).map(one).buffer_unordered(8).collect().await
    }

    /// Makes one of this image.
    pub(super) async fn container(&self, sandbox: &str, round: u32, name: String, image: &str) -> String {
        let named = |id: String| Some(Id { id });
        let request = Container {
            sandbox: sandbox.to_owned(),
            config: Some(ContainerConfig { metadata: named(name), image: named(image.to_owned()) }),
            sandbox_config: Some(config("web", round, true)),
        };
        self.0.call_within::<_, Id>(PATIENCE, CREATE, request).await.expect("made").id
    }

    /// Starts them.
    pub(super) async fn start(&self, containers: &[String]) {
        self.each(START, containers).await;
    }

    /// Removes them; those that run are killed.
    pub(super) async fn remove(&self, containers: Vec<String>) {
        self.each(REMOVE, &containers).await;
    }

    /// Ends a pod and removes it.
    pub(super) async fn remove_sandbox(&self, sandbox: String) {
        self.each(STOP_SANDBOX, std::slice::from_ref(&sandbox)).await;
        self.each(REMOVE_SANDBOX, &[sandbox]).await;
    }

    async fn each(&self, call: &'static str, ids: &[String]) {
        let one = |id: &String| {
            let id = Id { id: id.clone() };
            async move { self.0.call_within::<_, Empty>(PATIENCE, call, id).await.expect(call) }
        };
        futures::stream::iter(ids).map(one).buffer_unordered(8).map(drop).collect::<()>().await;
    }
}
