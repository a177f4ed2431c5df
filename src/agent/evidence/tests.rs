use std::fs;
use std::path::Path;

use super::*;
use crate::bundle::MANIFEST;

const SECRET: &str = "Zm9vYmFyLXNlY3JldC12YWx1ZQ";

fn plant(root: &Path, file: &str, text: &str) {
    let path = root.join(file);
    fs::create_dir_all(path.parent().expect("a parent")).expect("mkdir");
    fs::write(path, text).expect("writes");
}

fn node() -> tempfile::TempDir {
    let root = tempfile::tempdir().expect("a temporary directory");
    let pem = format!("-----BEGIN RSA PRIVATE KEY-----\n{SECRET}\n-----END RSA PRIVATE KEY-----\n");
    plant(
        root.path(),
        "etc/cni/net.d/10-calico.conflist",
        &format!("{{\"etcd_password\": \"{SECRET}\", \"name\": \"k8s\"}}"),
    );
    plant(
        root.path(),
        "etc/cni/net.d/calico-kubeconfig",
        &format!("users:\n- name: calico\n  user:\n    token: {SECRET}\n"),
    );
    plant(root.path(), "etc/kubernetes/kubelet.conf", &format!("users:\n- user:\n    client-key-data: {SECRET}\n"));
    plant(root.path(), "etc/containerd/config.toml", &format!("[a.auth]\n  password = \"{SECRET}\"\n{pem}"));
    plant(root.path(), "proc/meminfo", "MemTotal: 1 kB\n");
    let log = format!("2026-01-01T00:00:00Z stdout F Authorization: Bearer {SECRET}\n").repeat(9000);
    for (pod, runs) in [("kube-system_calico-node-abcde_1", 0..4), ("kube-system_other_2", 0..1)] {
        for run in runs {
            plant(
                root.path(),
                &format!("var/log/pods/{pod}/calico-node/{run}.log"),
                &format!("run {run}\n{log}end {run}\n"),
            );
        }
    }
    root
}

async fn gather(node: &Path, out: &Path, space: u64) -> Manifest {
    let new = Manifest::new("n1", "boot", "a test", Timestamp::UNIX_EPOCH);
    let (mut bundle, mut taken) = Bundle::folder(out, new).expect("it is made");
    let mut gatherer = Gatherer::new(&HostRoot::new(node), Depth::Light, space);
    gatherer.pieces(&mut bundle, &mut taken, |_| ()).await.expect("writes");
    taken
}

fn why<'a>(manifest: &'a Manifest, name: &str) -> Option<&'a str> {
    manifest.items.iter().find(|item| item.name == name).unwrap_or_else(|| panic!("no {name}")).failed.as_deref()
}

#[tokio::test]
async fn pieces_are_taken_redacted_and_bounded_and_what_is_missing_is_said() {
    let (root, out) = (node(), tempfile::tempdir().expect("a temporary directory"));
    nix::unistd::mkfifo(&root.path().join("etc/os-release"), nix::sys::stat::Mode::S_IRWXU).expect("a FIFO");
    let manifest = gather(root.path(), out.path(), 1 << 30).await;
    let read = |name: &str| fs::read_to_string(out.path().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
    assert_eq!(read("kernel/meminfo"), "MemTotal: 1 kB\n");
    assert_eq!(read("cni/net.d/10-calico.conflist"), "{\"etcd_password\": \"[redacted]\", \"name\": \"k8s\"}");
    assert!(read("cni/net.d.txt").contains("calico-kubeconfig"));
    // Of the last two runs of the right pod, the end.
    let logs: Vec<&str> = manifest
        .items
        .iter()
        .filter(|item| item.name.starts_with("logs/calico-node/"))
        .map(|item| item.name.as_str())
        .collect();
    assert_eq!(logs, ["logs/calico-node/calico-node-abcde-3.log", "logs/calico-node/calico-node-abcde-2.log"]);
    assert!(read(logs[0]).ends_with("end 3\n") && !read(logs[0]).contains("run 3"));
    let cut = manifest.items.iter().find(|item| item.name == logs[0]).and_then(|item| item.cut.as_deref());
    assert!(cut.is_some_and(|cut| cut == "all but the last 262144 bytes"), "{cut:?}");
    assert_eq!(why(&manifest, "identity/os-release"), Some("is a FIFO, not a file"));
    assert_eq!(why(&manifest, "logs/kube-proxy"), Some("does not exist"));
    let whole = std::process::Command::new("grep").args(["-r", SECRET]).arg(out.path()).output().expect("grep");
    assert_eq!(String::from_utf8_lossy(&whole.stdout), "");
    let kubeconfig = manifest.items.iter().find(|item| item.name == "cni/net.d/calico-kubeconfig");
    assert_eq!(kubeconfig.map(|item| item.redacted), Some(1));
}

#[tokio::test]
async fn a_second_run_takes_what_the_first_could_not_and_nothing_else() {
    let (root, out) = (node(), tempfile::tempdir().expect("a temporary directory"));
    let first = gather(root.path(), out.path(), 1 << 30).await;
    assert_eq!(why(&first, "kernel/loadavg"), Some("does not exist"));
    let before = fs::metadata(out.path().join("kernel/meminfo")).expect("it is there").modified().expect("a time");
    plant(root.path(), "proc/loadavg", "0.1\n");
    let second = gather(root.path(), out.path(), 1 << 30).await;
    assert_eq!(why(&second, "kernel/loadavg"), None);
    assert_eq!(
        fs::metadata(out.path().join("kernel/meminfo")).expect("it is there").modified().expect("a time"),
        before
    );
    assert_eq!(first.items.len(), second.items.len());
    // A bundle of another boot is not mixed in.
    let other = Manifest::new("n1", "another boot", "a test", Timestamp::UNIX_EPOCH);
    let why = format!("{:#}", Bundle::folder(out.path(), other).expect_err("another boot"));
    assert!(why.contains("give another directory"), "{why}");
}

#[tokio::test]
async fn what_the_agent_kept_before_is_taken_whole_enough_to_be_judged() {
    let root = tempfile::tempdir().expect("a temporary directory");
    for file in ["manifest.json", "facts.json", "SUMMARY.txt", "kernel/meminfo"] {
        plant(root.path(), &format!("var/lib/nodevitals/evidence/20260101T000000Z-DiskFull/{file}"), file);
    }
    plant(root.path(), "var/lib/nodevitals/evidence/.new/kernel/meminfo", "half of one");
    let piece = PIECES.iter().find(|piece| piece.name == "kept").expect("the piece");
    let take = Take::new(HostRoot::new(root.path()));
    let all = take.expand(piece).await.expect("it is listed");
    let names: Vec<&str> = all.iter().map(|(name, _)| name.as_str()).collect();
    let of = |file: &str| format!("kept/20260101T000000Z-DiskFull/{file}");
    assert_eq!(names, [of("manifest.json"), of("SUMMARY.txt"), of("facts.json")]);
    assert_eq!(take.take(piece, &all[2].1).await.expect("it is read").bytes, b"facts.json");
}

#[tokio::test]
async fn of_a_program_that_does_not_end_what_it_said_is_kept() {
    let run = async |script: &str, limit| run_program(&["sh", "-c", script], limit, Duration::from_millis(700)).await;
    let hung = run("echo one; exec sleep 60", 100).await.expect("it said something");
    assert_eq!((&*hung.bytes, hung.cut.as_deref()), (&b"one\n"[..], Some("what came after 0 s")));
    assert_eq!(run("exec sleep 60", 100).await.expect_err("silent"), "has not ended within 0 s");
    // More than is taken ends it; more complaints than are kept do not.
    let long = run("yes", 10).await.expect("the beginning");
    assert_eq!((&*long.bytes, long.cut.as_deref()), (&b"y\ny\ny\ny\ny\n"[..], Some("after 10 bytes")));
    let loud = run("yes | head -c 300000 >&2; echo end", 100).await.expect("it ends");
    assert_eq!((&*loud.bytes, loud.cut), (&b"end\n"[..], None));
    let failed = run("echo why >&2; exit 3", 100).await.expect_err("it failed");
    assert_eq!(failed, "exit status: 3: why");
    let missing = run_program(&["/nonexistent/tcpdump"], 1, DEADLINE).await.expect_err("there is none");
    assert_eq!(missing, "/nonexistent/tcpdump is not installed here");
}

#[tokio::test]
async fn a_bundle_that_is_full_says_so() {
    let (root, out) = (node(), tempfile::tempdir().expect("a temporary directory"));
    let manifest = gather(root.path(), out.path(), 64 << 10).await;
    let why = why(&manifest, "logs/calico-node/calico-node-abcde-3.log").expect("no room");
    assert!(why.ends_with("bytes are more than the bundle has room for"), "{why}");
    let bytes: u64 = manifest.items.iter().map(|item| item.bytes).sum();
    assert!(bytes <= 64 << 10, "{bytes}");
    assert!(out.path().join(MANIFEST).exists());
}
