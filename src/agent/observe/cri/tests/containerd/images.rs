//! Which registries the images of containers are from, by a real containerd.

use super::ask::Asking;
use super::*;

/// Looks until the registries are just this one, used or not. The list is asked for seldom: somebody who has not asked yet asks at
/// once.
async fn registry_is_used(containerd: &Containerd, used: bool) {
    let expected = [ImageHost { name: "registry.example".into(), used }];
    until(containerd, &format!("from a registry with used {used}"), async || {
        let mut source = containerd.source();
        source.look(None, true).await;
        let hosts = source.image_hosts();
        if hosts == expected { Ok(()) } else { Err(format!("{hosts:?}")) }
    })
    .await;
}

#[tokio::test]
async fn the_registries_of_the_images_that_it_keeps() {
    let containerd = Containerd::start(one());
    let mut first = containerd.source();
    eventually(&containerd, &mut first, "ready", answers).await;
    assert!(first.image_hosts().is_empty());
    let write = |name: &str, text: &str| std::fs::write(containerd.root.path().join(name), text).expect("write");
    let config =
        r#"{"architecture": "amd64", "os": "linux", "config": {}, "rootfs": {"type": "layers", "diff_ids": []}}"#;
    write("config.json", config);
    write("manifest.json", r#"[{"Config": "config.json", "RepoTags": ["registry.example/x:1"], "Layers": []}]"#);
    let mut tar = Command::new("tar");
    let output =
        tar.args(["-cf", "image.tar", "manifest.json", "config.json"]).current_dir(containerd.root.path()).output();
    let output = output.expect("tar");
    assert!(output.status.success(), "tar: {}", String::from_utf8_lossy(&output.stderr));
    containerd.ctr(&["images", "import", "--no-unpack", "image.tar"]);
    // Nobody has made a container of it.
    registry_is_used(&containerd, false).await;
}

async fn a_container_uses_the_registry_of_its_image(program: PathBuf) {
    const IMAGE: &str = "registry.example/x:1";
    let containerd = Containerd::start(program);
    eventually(&containerd, &mut containerd.source(), "ready", answers).await;
    let asking = Asking::of(&containerd).await;
    let sandbox = asking.sandbox("web", 0, true).await.expect("made");
    // The same image by another name, which the runtime does not keep for itself.
    let ctr = |args: &[&str]| containerd.ctr(&[&["images"], args].concat());
    ctr(&["tag", "docker.io/library/pause:test", IMAGE]);
    // It has its id for a name, too.
    for name in ctr(&["ls", "-q"]).lines() {
        ctr(&["label", name, "io.cri-containerd.pinned="]);
    }
    ctr(&["rm", "docker.io/library/pause:test"]);
    registry_is_used(&containerd, false).await;
    let container = asking.container(&sandbox, 0, "c".to_owned(), IMAGE).await;
    registry_is_used(&containerd, true).await;
    asking.remove(vec![container]).await;
    registry_is_used(&containerd, false).await;
}

#[tokio::test]
async fn containerd_1_a_container_uses_the_registry_of_its_image() {
    a_container_uses_the_registry_of_its_image(one()).await;
}

#[tokio::test]
async fn containerd_2_a_container_uses_the_registry_of_its_image() {
    a_container_uses_the_registry_of_its_image(two()).await;
}
