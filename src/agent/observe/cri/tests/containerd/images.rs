//! Which registries the images of containers are from, by a real containerd.

use super::ask::Asking;
use super::*;

/// Looks anew, since the list is asked for seldom, until the registries are just this one, used or not.
async fn until(containerd: &Containerd, used: bool) {
    let expected = [ImageHost { name: "registry.example".into(), used }];
    let started = Instant::now();
    loop {
        let mut source = containerd.source();
        source.look(None, true).await;
        if source.image_hosts() == expected {
            return;
        }
        assert!(started.elapsed() < PATIENCE, "{used}: {:?}\n{}", source.image_hosts(), containerd.log());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn a_container_uses_the_registry_of_its_image(program: PathBuf) {
    const IMAGE: &str = "registry.example/x:1";
    let containerd = Containerd::start(program);
    eventually(&containerd, &mut containerd.source(), "ready", answers).await;
    let asking = Asking::of(&containerd).await;
    let sandbox = asking.sandbox("web", 0, true).await.expect("made");
    // The same image by another name, which the runtime does not keep for itself.
    let ctr = |args: &[&str]| {
        let socket = containerd.root.path().join("run/containerd/containerd.sock");
        let mut command = Command::new("ctr");
        let output = command.arg("-a").arg(socket).args(["-n", "k8s.io", "images"]).args(args).output();
        let output = output.expect("containerd comes with ctr");
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    ctr(&["tag", "docker.io/library/pause:test", IMAGE]);
    // It has its id for a name, too.
    for name in ctr(&["ls", "-q"]).lines() {
        ctr(&["label", name, "io.cri-containerd.pinned="]);
    }
    ctr(&["rm", "docker.io/library/pause:test"]);
    until(&containerd, false).await;
    let container = asking.container(&sandbox, 0, "c".to_owned(), IMAGE).await;
    until(&containerd, true).await;
    asking.remove(vec![container]).await;
    until(&containerd, false).await;
}

#[tokio::test]
async fn containerd_1_a_container_uses_the_registry_of_its_image() {
    a_container_uses_the_registry_of_its_image(one()).await;
}

#[tokio::test]
async fn containerd_2_a_container_uses_the_registry_of_its_image() {
    a_container_uses_the_registry_of_its_image(two()).await;
}
