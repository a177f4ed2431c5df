//! A process table of files, and one real process.

use std::path::Path;

use super::*;

const BOOT: i64 = 1_700_000_000;

/// Writes `/proc/PID` of a process that started `ticks` ticks after boot.
fn process(root: &Path, pid: i32, comm: &str, arguments: &[&str], state: char, ticks: u64) {
    child(root, pid, 1, comm, arguments, state, ticks);
}

fn child(root: &Path, pid: i32, parent: i32, comm: &str, arguments: &[&str], state: char, ticks: u64) {
    let dir = root.join(format!("proc/{pid}"));
    std::fs::create_dir_all(&dir).expect("mkdir");
    let zeros = "0 ".repeat(30);
    let line = format!("{pid} ({comm}) {state} {parent} 1 1 0 -1 4194560 0 0 0 0 0 0 0 0 20 0 1 0 {ticks} {zeros}\n");
    for (name, text) in [
        ("stat", line),
        ("comm", format!("{comm}\n")),
        ("cmdline", arguments.iter().fold(String::new(), |all, argument| all + argument + "\0")),
        ("status", format!("Name:\t{comm}\nNSpid:\t{pid}\n")),
    ] {
        std::fs::write(dir.join(name), text).expect("write");
    }
}

fn look(source: &mut ProcessSource, seconds: u64) -> Vec<(Program, i32, char)> {
    let now = Timestamp::from_second(BOOT + i64::try_from(seconds).expect("small")).expect("a valid time");
    let processes = source.look(now, Duration::from_secs(seconds)).expect("readable");
    processes.found.iter().map(|process| (process.program, process.pid, process.state)).collect()
}

fn node() -> (tempfile::TempDir, ProcessSource) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    process(dir.path(), 10, "kubelet", &["/usr/bin/kubelet", "--config=/a", "--kubeconfig", "/b"], 'S', 500);
    process(dir.path(), 11, "containerd", &["/usr/bin/containerd"], 'S', 400);
    process(dir.path(), 12, "containerd-shim", &["/usr/bin/containerd-shim-runc-v2", "-id", "x"], 'S', 600);
    process(dir.path(), 2, "kthreadd", &[], 'S', 0);
    let source = ProcessSource::new(HostRoot::new(dir.path()));
    (dir, source)
}

#[test]
fn kube_proxys_mode_is_what_its_command_line_or_its_configuration_says() {
    const POD: &str = "0::/../../kubepods-besteffort.slice/kubepods-besteffort-pod1.slice/cri-containerd-2.scope\n";
    const SERVICE: &str = "0::/../../../system.slice/kube-proxy.service\n";
    let mode = |cgroup: &str, arguments: &[&str], [inside, outside]: [Option<&str>; 2]| {
        let ((dir, mut source), container) = (node(), tempfile::tempdir().expect("a temporary directory"));
        process(dir.path(), 20, "kube-proxy", &[&["/usr/bin/kube-proxy"], arguments].concat(), 'S', 700);
        std::fs::write(dir.path().join("proc/20/cgroup"), cgroup).expect("write");
        // A plain directory would be found by any way there: the kernel's is a link that leads out of the host's tree.
        std::os::unix::fs::symlink(container.path(), dir.path().join("proc/20/root")).expect("link");
        for (root, file) in [(container.path(), inside), (dir.path(), outside)] {
            let directory = root.join("var/lib/kube-proxy");
            std::fs::create_dir_all(&directory).expect("mkdir");
            if let Some(text) = file {
                std::fs::write(directory.join("config.conf"), text).expect("write");
            }
        }
        let now = Timestamp::from_second(BOOT).expect("a valid time");
        source.look(now, Duration::from_secs(100)).expect("readable").proxy_mode
    };
    assert_eq!(mode(POD, &["--proxy-mode=ipvs"], [None; 2]), Some(ProxyMode::Ipvs));
    assert_eq!(mode(POD, &["--proxy-mode", "nftables"], [None; 2]), Some(ProxyMode::Nftables));
    assert_eq!(mode(POD, &[], [None; 2]), None, "the default of its version");
    let config = ["--config=/var/lib/kube-proxy/config.conf", "--proxy-mode=ipvs"];
    let (iptables, ipvs) = (Some("kind: KubeProxyConfiguration\nmode: \"iptables\"\n"), Some("mode: ipvs\n"));
    assert_eq!(mode(POD, &config, [iptables, ipvs]), Some(ProxyMode::Iptables), "not what was left on the host");
    assert_eq!(mode(POD, &config, [Some("kind: KubeProxyConfiguration\nmode: \"\"\n"), ipvs]), None);
    assert_eq!(mode(POD, &config, [Some("mode: ["), ipvs]), None);
    assert_eq!(mode(POD, &config, [None, ipvs]), None, "it may not be read");
    assert_eq!(mode(SERVICE, &config, [iptables, ipvs]), Some(ProxyMode::Ipvs), "a program of the host");
    assert_eq!(mode(SERVICE, &config, [iptables, None]), None);
}

#[test]
fn processes_of_containers_by_their_cgroups() {
    let id = "0123456789abcdef".repeat(4);
    for (cgroups, inside) in [
        ("0::/system.slice/kube-proxy.service\n".to_owned(), false),
        ("12:pids:/kubepods/besteffort/pod1/2\n0::/\n".to_owned(), true),
        // As a pod of the same class sees it.
        (format!("0::/../../podb1-c2/{id}\n"), true),
        (format!("0::/system.slice/docker-{id}.scope\n"), true),
        (format!("0::/system.slice/containerd.service/a.slice:cri-containerd:{id}\n"), true),
        (format!("0::/system.slice/{id}0.service\n"), false),
        (String::new(), false),
    ] {
        assert_eq!(identity::in_container(&cgroups), inside, "{cgroups}");
    }
}

#[test]
fn finds_what_runs_and_since_when() {
    let (_dir, mut source) = node();
    let found = look(&mut source, 100);
    assert_eq!(found, [(Program::Kubelet, 10, 'S'), (Program::Containerd, 11, 'S')]);
    let arguments = source.kubelet_arguments().expect("it runs");
    assert_eq!(arguments, ["/usr/bin/kubelet", "--config=/a", "--kubeconfig", "/b"]);
    let start = source.known[0].process.started_at;
    assert_eq!(start.as_second(), BOOT + 500 / i64::try_from(procfs::ticks_per_second()).expect("small"));
}

#[test]
fn what_has_gone_is_looked_for_at_each_look_for_a_minute() {
    let (dir, mut source) = node();
    look(&mut source, 100);
    std::fs::remove_dir_all(dir.path().join("proc/10")).expect("the kubelet ends");
    assert_eq!(look(&mut source, 102), [(Program::Containerd, 11, 'S')]);
    process(dir.path(), 20, "kubelet", &["/usr/bin/kubelet"], 'S', 10_300);
    assert_eq!(look(&mut source, 104), [(Program::Kubelet, 20, 'S'), (Program::Containerd, 11, 'S')]);
    std::fs::remove_dir_all(dir.path().join("proc/20")).expect("it ends again");
    for seconds in [106, 108, 150, 167] {
        assert_eq!(look(&mut source, seconds), [(Program::Containerd, 11, 'S')]);
    }
    process(dir.path(), 30, "kubelet", &["/usr/bin/kubelet"], 'S', 16_800);
    assert_eq!(look(&mut source, 169).len(), 1, "a minute later it is no restart");
    assert_eq!(look(&mut source, 182).len(), 2);
}

#[test]
fn a_stopped_process_is_seen_without_a_walk() {
    let (dir, mut source) = node();
    look(&mut source, 100);
    process(dir.path(), 11, "containerd", &["/usr/bin/containerd"], 'T', 400);
    process(dir.path(), 13, "crio", &["/usr/bin/crio"], 'S', 400);
    assert_eq!(look(&mut source, 101), [(Program::Kubelet, 10, 'S'), (Program::Containerd, 11, 'T')]);
    assert_eq!(look(&mut source, 161).len(), 3, "the walk of every minute finds the new one");
}

#[test]
fn a_restart_is_seen_at_once() {
    let (dir, mut source) = node();
    look(&mut source, 100);
    std::fs::remove_dir_all(dir.path().join("proc/11")).expect("gone");
    process(dir.path(), 14, "containerd", &["/usr/bin/containerd"], 'S', 10_050);
    assert_eq!(look(&mut source, 101)[1], (Program::Containerd, 14, 'S'));
    process(dir.path(), 14, "other", &["/usr/bin/other"], 'S', 10_150);
    assert_eq!(look(&mut source, 102).len(), 1, "the same id is another process by now");
}

#[test]
fn what_is_missing_is_searched_for_every_fifteen_seconds() {
    let (dir, mut source) = node();
    process(dir.path(), 20, "kube-proxy", &["/usr/bin/kube-proxy"], 'Z', 600);
    look(&mut source, 100);
    process(dir.path(), 20, "kube-proxy", &["/usr/bin/kube-proxy"], 'S', 600);
    assert_eq!(look(&mut source, 120).len(), 2, "never found, so nobody misses it");
    assert_eq!(look(&mut source, 160).len(), 3);
    std::fs::remove_dir_all(dir.path().join("proc/20")).expect("gone");
    assert_eq!(look(&mut source, 161).len(), 2);
    assert_eq!(look(&mut source, 222).len(), 2);
    process(dir.path(), 21, "kube-proxy", &["/usr/bin/kube-proxy"], 'S', 700);
    assert_eq!(look(&mut source, 230).len(), 2);
    assert_eq!(look(&mut source, 237).len(), 3, "it is missed now");
}

#[test]
fn a_containerd_inside_a_pod_is_not_the_nodes() {
    let (dir, mut source) = node();
    std::fs::write(dir.path().join("proc/11/status"), "Name:\tcontainerd\nNSpid:\t11\t7\n").expect("write");
    assert_eq!(look(&mut source, 100), [(Program::Kubelet, 10, 'S')]);
}

#[test]
fn a_clock_that_is_set_moves_the_start_and_jitter_does_not() {
    let (_dir, mut source) = node();
    let mut start = |second: i64, since_boot: Duration| {
        let now = Timestamp::from_second(second).expect("a valid time");
        source.look(now, since_boot).expect("readable").found[0].started_at
    };
    let first = start(BOOT + 100, Duration::from_secs(100));
    assert_eq!(start(BOOT + 101, Duration::from_millis(101_300)), first);
    assert_eq!(start(BOOT + 3702, Duration::from_secs(102)).duration_since(first).as_secs(), 3600);
}

#[test]
fn programs_by_other_names() {
    let program = |comm: &str, line: &str| classify(comm, &line.split('|').map(str::to_owned).collect::<Vec<_>>());
    assert_eq!(program("calico-node", "calico-node|-felix"), Some(Program::Felix));
    assert_eq!(program("calico-node", "calico-node|-confd"), None);
    assert_eq!(program("calico-felix", "calico-felix"), Some(Program::Felix));
    assert_eq!(program("hyperkube", "/hyperkube|kubelet|--v=2"), Some(Program::Kubelet));
    assert_eq!(program("hyperkube", "/hyperkube|kube-proxy"), Some(Program::KubeProxy));
    assert_eq!(program("k3s-server", "/usr/local/bin/k3s server"), Some(Program::Kubelet));
    assert_eq!(program("k3s", "k3s|kubectl|get"), None);
    assert_eq!(program("bird6", "bird6|-R"), Some(Program::Bird));
    assert_eq!(classify("kubelet", &[]), None, "a kernel thread of that name");
}

#[test]
fn shims_of_kubernetes_and_what_they_leave_unreaped() {
    let (dir, mut source) = node();
    let shim = |pid, arguments: &[&str]| {
        process(
            dir.path(),
            pid,
            "containerd-shim",
            &[&["/usr/bin/containerd-shim-runc-v2"], arguments].concat(),
            'S',
            600,
        );
    };
    shim(30, &["-namespace", "k8s.io", "-id", "abc", "-address", "/run/containerd/containerd.sock"]);
    shim(31, &["-namespace", "moby", "-id", "docker"]);
    shim(32, &["-namespace", "k8s.io", "-id", "new", "start"]);
    shim(33, &["-namespace", "k8s.io", "-id", "kind"]);
    std::fs::write(dir.path().join("proc/33/status"), "Name:\tcontainerd-shim\nNSpid:\t33\t7\n").expect("write");
    child(dir.path(), 40, 30, "sh", &[], 'Z', 700);
    child(dir.path(), 41, 99, "sh", &[], 'Z', 700);
    look(&mut source, 100);
    assert_eq!(source.attendants().shims, [], "the first look does not wait for them");
    look(&mut source, 102);
    look(&mut source, 160);
    let attendants = source.attendants();
    assert_eq!(attendants.shims, [Shim { pid: 30, sandbox: "abc".into(), by_pod: false }]);
    assert_eq!(attendants.zombies, [(40, 700)], "the other one is a container's own");
    assert_eq!(attendants.daemons, [(Program::Kubelet, 10), (Program::Containerd, 11)]);
    for pid in [30, 40] {
        std::fs::remove_dir_all(dir.path().join(format!("proc/{pid}"))).expect("gone");
    }
    look(&mut source, 220);
    assert_eq!((source.attendants().shims.len(), source.attendants().zombies.len()), (0, 0));
}

#[test]
fn conmon_of_crio_is_told_by_its_pod() {
    let (dir, mut source) = node();
    let conmon = |pid, name: &[&str]| {
        let run = "/run/containers/storage/overlay-containers/c1/userdata";
        let arguments = [&["/usr/bin/conmon", "-b", run, "-c", "c1", "--exit-dir", "/run/crio/exits"], name].concat();
        process(dir.path(), pid, "conmon", &arguments, 'S', 600);
    };
    conmon(30, &["-n", "k8s_app_web-0_shop_11-22_3", "-P", "/run/conmon-pidfile", "-u", "c1"]);
    conmon(31, &["-n", "podman-made", "-u", "c1"]);
    conmon(32, &["--name", "k8s_POD_web-1_shop_33-44_0"]);
    conmon(33, &[]);
    for second in [100, 102, 160] {
        look(&mut source, second);
    }
    let shims: Vec<_> =
        source.attendants().shims.iter().map(|it| (it.pid, it.sandbox.to_string(), it.by_pod)).collect();
    assert_eq!(shims, [(30, "11-22".to_owned(), true), (32, "33-44".to_owned(), true)]);
}

#[test]
fn children_of_kube_proxy_that_ended_and_stay_are_told() {
    let (dir, mut source) = node();
    process(dir.path(), 20, "kube-proxy", &["/usr/bin/kube-proxy"], 'S', 700);
    child(dir.path(), 41, 20, "iptables-restor", &[], 'Z', 800);
    child(dir.path(), 42, 20, "sh", &[], 'Z', 800);
    child(dir.path(), 43, 10, "iptables", &[], 'Z', 800);
    let at = |seconds: u64| Timestamp::from_second(BOOT + i64::try_from(seconds).expect("small")).expect("valid");
    let mut defunct = |seconds: u64| source.look(at(seconds), Duration::from_secs(seconds)).expect("readable").defunct;
    assert_eq!(defunct(100), [], "only its name was read");
    assert_eq!(defunct(160), [], "it may be asked about in the next moment");
    assert_eq!(defunct(220), [(Program::KubeProxy, "iptables-restor".to_owned(), 41)]);
    for walk in 0..12 {
        assert_eq!(defunct(280 + walk * 60).len(), 1, "{walk}");
    }
    std::fs::remove_dir_all(dir.path().join("proc/41")).expect("asked about");
    assert_eq!(defunct(1100), []);
}

#[test]
fn walks_that_follow_each_other_at_once_are_no_two() {
    let (dir, mut source) = node();
    process(dir.path(), 20, "kube-proxy", &["/usr/bin/kube-proxy"], 'S', 700);
    look(&mut source, 100);
    std::fs::remove_dir_all(dir.path().join("proc/10")).expect("the kubelet ends");
    child(dir.path(), 41, 20, "iptables", &[], 'Z', 800);
    let at = |seconds: u64| Timestamp::from_second(BOOT + i64::try_from(seconds).expect("small")).expect("valid");
    let mut defunct = |seconds: u64| source.look(at(seconds), Duration::from_secs(seconds)).expect("readable").defunct;
    // At each look for a minute: of the first one its name alone is read.
    for seconds in [102, 104, 106, 108, 148] {
        assert_eq!(defunct(seconds), [], "{seconds}");
    }
    assert_eq!(defunct(150), [(Program::KubeProxy, "iptables".to_owned(), 41)]);
}

#[test]
fn what_becomes_another_program_or_a_zombie_late_is_seen_within_ten_walks() {
    let (dir, mut source) = node();
    process(dir.path(), 30, "sh", &["/bin/sh", "/start-bird"], 'S', 600);
    child(dir.path(), 40, 10, "sh", &["/bin/sh"], 'S', 700);
    let walks = |source: &mut ProcessSource, from: u64| (0..10).for_each(|at| drop(look(source, from + at * 60)));
    walks(&mut source, 100);
    process(dir.path(), 30, "bird", &["bird", "-R"], 'S', 600);
    child(dir.path(), 40, 10, "sh", &[], 'Z', 700);
    walks(&mut source, 700);
    assert_eq!(look(&mut source, 1300)[2], (Program::Bird, 30, 'S'));
    assert_eq!(source.attendants().zombies, [(40, 700)]);
}

#[test]
fn reads_this_machine() {
    let own = i32::try_from(std::process::id()).expect("small");
    let found = stat::read(&Path::new("/proc").join(own.to_string())).expect("this process runs");
    let since_boot = crate::clock::since_boot();
    let started = started_at(Timestamp::now(), since_boot, found.starttime);
    let age = Timestamp::now().duration_since(started).as_secs();
    assert!((0..3600).contains(&age), "this test has run for {age} s");
    ProcessSource::new(HostRoot::new("/")).look(Timestamp::now(), since_boot).expect("readable");
}

#[test]
fn a_line_that_no_kernel_writes_is_no_process() {
    let line = |line: &[u8]| parse(line).map(|stat| (stat.state, stat.starttime));
    let zeros = "0 ".repeat(18);
    assert_eq!(line(format!("7 (a) b) R {zeros} 42 0\n").as_bytes()), Some(('R', 42)));
    for odd in [b"7 (a)".as_slice(), b"7 (a)\xda0R 1 2", b"", b"7 (a) R 1 2", b"7 a R"] {
        assert_eq!(line(odd), None, "{odd:?}");
    }
}

#[test]
fn no_process_table_is_an_error() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut source = ProcessSource::new(HostRoot::new(dir.path()));
    assert!(source.look(Timestamp::now(), Duration::ZERO).is_err());
}
