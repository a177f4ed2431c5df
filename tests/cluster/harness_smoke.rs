//! The harness itself: what every other test here takes for granted.

use std::{
    fs,
    net::{TcpListener, TcpStream},
    ops::Deref,
    path::PathBuf,
    time::Duration,
};

use anyhow::{Result, ensure};
use nix::{sys::signal::Signal, unistd::Pid};

use crate::support::{
    cluster::Cluster,
    control_plane::{Bound, ControlPlane, Parts},
    netns::NetNs,
    node::NodeOptions,
    parts, shell,
    wait::eventually,
};

const SOON: Duration = Duration::from_secs(30);

#[test]
fn namespaces_are_joined_by_a_cable() -> Result<()> {
    let (left, right) = (NetNs::new()?, NetNs::new()?);
    left.connect("eth0", &right, "eth0")?;
    left.exec(&["ip", "address", "add", "10.1.1.1/24", "dev", "eth0"])?;
    right.exec(&["ip", "address", "add", "10.1.1.2/24", "dev", "eth0"])?;

    let _listener = left.run(|| TcpListener::bind("10.1.1.1:80"))?;
    right.run(|| TcpStream::connect("10.1.1.1:80"))?;
    assert_eq!(right.exec(&["ls", "/sys/class/net"])?, "eth0\nlo\n");
    Ok(())
}

#[test]
fn a_token_carries_the_node_and_writes_are_audited() -> Result<()> {
    let control_plane = ControlPlane::start(Parts::ApiOnly)?;
    control_plane.apply(
        r#"
        {"apiVersion": "v1", "kind": "List", "items": [
          {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"}},
          {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "agent", "namespace": "default"}}
        ]}"#,
    )?;

    let kubeconfig = control_plane.service_account_kubeconfig("default", "agent", Bound::Node("n1"))?;
    let mut whoami = control_plane.command_in(parts::program("kubectl")?);
    whoami.arg("--kubeconfig").arg(kubeconfig).args(["auth", "whoami", "-o", "json"]);
    let answer: serde_json::Value = serde_json::from_str(&shell::read(&mut whoami)?)?;
    let user = &answer["status"]["userInfo"];
    assert_eq!(user["username"], "system:serviceaccount:default:agent");
    assert_eq!(user["extra"]["authentication.kubernetes.io/node-name"][0], "n1");

    let writes = control_plane.writes_by("admin")?;
    let node = writes.iter().find(|event| event["objectRef"]["resource"] == "nodes");
    assert!(node.is_some_and(|event| event["verb"] == "create"), "{writes:#?}");
    Ok(())
}

#[test]
fn a_cluster_runs_pods_and_leaves_nothing() -> Result<()> {
    let mut cluster = Cluster::start()?;
    cluster.add_nodes(vec![("n1", NodeOptions::in_zone("zone-a")), ("n2", NodeOptions::in_zone("zone-b"))])?;
    let id = cluster.workspace().id().to_owned();
    let hosts = cluster.nodes().map(Deref::deref).chain([cluster.host()]);
    let networks: Vec<_> = hosts.map(|host| network_of(host.init())).collect::<Result<_>>()?;

    pods_reach_each_other_and_are_reached(&cluster)?;
    programs_are_stopped_and_started_one_by_one(&cluster)?;

    // The hardest to get rid of: a stopped process with children.
    cluster.node("n1")?.signal("containerd", Signal::SIGSTOP)?;
    drop(cluster);
    no_file_is_left(&id)?;
    no_process_is_left(&networks)
}

#[test]
#[ignore = "two nodes to try things on: cargo test --test cluster by_hand -- --ignored --nocapture, ends with Enter"]
#[expect(clippy::print_stderr, reason = "tells how to get in")]
fn a_cluster_by_hand() -> Result<()> {
    let mut cluster = Cluster::start()?;
    cluster.add_nodes(vec![("n1", NodeOptions::in_zone("zone-a")), ("n2", NodeOptions::in_zone("zone-b"))])?;
    let kubectl = parts::program("kubectl")?;
    let kubeconfig = cluster.admin_kubeconfig()?;
    eprintln!("nsenter -t {} -n {} --kubeconfig {}", cluster.host().init(), kubectl.display(), kubeconfig.display());
    for node in cluster.nodes() {
        eprintln!("nsenter -t {} -n -m -p -u bash    # {}", node.init(), node.name());
    }
    eprintln!("logs: {}", cluster.workspace().logs().display());
    std::io::stdin().read_line(&mut String::new())?;
    Ok(())
}

fn pods_reach_each_other_and_are_reached(cluster: &Cluster) -> Result<()> {
    cluster.import_image(&parts::archive("busybox.tar")?)?;
    cluster.apply(&web_pod("n1"))?;
    cluster.apply(&web_pod("n2"))?;
    cluster.apply(
        r#"{"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"},
            "spec": {"selector": {"app": "web"}, "ports": [{"port": 80}]}}"#,
    )?;

    let service = cluster.kubectl(&["get", "service", "web", "-o", "jsonpath={.spec.clusterIP}"])?;
    let url = format!("http://{service}/");
    for (from, to) in [("web-n1", "web-n2"), ("web-n2", "web-n1"), ("web-n1", "web-n1")] {
        eventually("a pod reaches a pod by the Service", SOON, || {
            let answer = cluster.kubectl(&["exec", from, "--", "timeout", "2", "wget", "-qO-", &url])?;
            ensure!(answer.trim() == to, "{from} reached {answer}");
            Ok(())
        });
        ensure!(cluster.kubectl(&["logs", to])?.contains("hello"));
    }
    let proxied = cluster.raw("/api/v1/namespaces/default/services/web:80/proxy/")?;
    ensure!(proxied.starts_with("web-n"), "{proxied}");
    let seen = cluster.kubectl(&["exec", "web-n1", "--", "ls", "/host/etc/cni/net.d"])?;
    ensure!(seen.contains("10-bridge.conflist"), "{seen}");
    Ok(())
}

fn programs_are_stopped_and_started_one_by_one(cluster: &Cluster) -> Result<()> {
    let node = cluster.node("n2")?;
    for program in ["kubelet", "kube-proxy", "containerd"] {
        node.signal(program, Signal::SIGSTOP)?;
        eventually("a stopped program", SOON, || {
            let status = fs::read_to_string(format!("/proc/{}/status", node.pid(program)?))?;
            ensure!(status.contains("State:\tT"), "{status}");
            Ok(())
        });
        node.signal(program, Signal::SIGCONT)?;

        node.kill(program)?;
        ensure!(node.pid(program).is_err(), "{program} still runs");
        node.start(program)?;
    }
    node.wait_until_ready(cluster, SOON)
}

fn no_file_is_left(id: &str) -> Result<()> {
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    ensure!(!mounts.contains(id), "{mounts}");

    let mut directories = vec![std::env::temp_dir().join("nodevitals-test")];
    for hierarchy in fs::read_dir("/sys/fs/cgroup")? {
        directories.push(hierarchy?.path());
    }
    for directory in directories {
        for entry in fs::read_dir(&directory).into_iter().flatten() {
            let left = entry?.path();
            ensure!(!left.display().to_string().contains(id), "{} is left", left.display());
        }
    }
    Ok(())
}

fn no_process_is_left(networks: &[PathBuf]) -> Result<()> {
    for process in fs::read_dir("/proc")? {
        let process = process?.path();
        // Other processes come and go meanwhile.
        if let Ok(network) = fs::read_link(process.join("ns/net")) {
            ensure!(!networks.contains(&network), "{} still runs", process.display());
        }
    }
    Ok(())
}

fn network_of(process: Pid) -> Result<PathBuf> {
    Ok(fs::read_link(format!("/proc/{process}/ns/net"))?)
}

fn web_pod(node: &str) -> String {
    serde_json::json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": format!("web-{node}"), "labels": {"app": "web"}},
        "spec": {
            "nodeName": node,
            "terminationGracePeriodSeconds": 0,
            "volumes": [{"name": "host", "hostPath": {"path": "/"}}],
            "containers": [{
                "name": "web", "image": "docker.io/library/busybox:test", "imagePullPolicy": "Never",
                "command": ["sh", "-c", "echo hello; hostname > /www/index.html; exec httpd -f -p 80 -h /www"],
                "volumeMounts": [{
                    "name": "host", "mountPath": "/host", "readOnly": true,
                    "mountPropagation": "HostToContainer",
                }],
            }],
        },
    })
    .to_string()
}
