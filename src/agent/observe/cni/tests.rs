//! Directories as they are found after crashes, half-done installations and pranks.

use std::os::unix::fs::symlink;
use std::path::Path;

use super::*;

const GOOD: &str = r#"{"cniVersion":"0.3.1","name":"k8s-pod-network","plugins":[
    {"type":"calico","ipam":{"type":"calico-ipam"}},{"type":"portmap","capabilities":{"portMappings":true}}]}"#;

struct Node(tempfile::TempDir);

impl Node {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        std::fs::create_dir_all(dir.path().join("etc/cni/net.d")).expect("mkdir");
        std::fs::create_dir_all(dir.path().join("opt/cni/bin")).expect("mkdir");
        Node(dir)
    }

    fn conf(&self, name: &str) -> std::path::PathBuf {
        self.0.path().join("etc/cni/net.d").join(name)
    }

    fn with(self, name: &str, text: impl AsRef<[u8]>) -> Self {
        std::fs::write(self.conf(name), text).expect("write");
        self
    }

    fn binary(self, name: &str, text: &str, mode: u32) -> Self {
        let path = self.0.path().join("opt/cni/bin").join(name);
        std::fs::write(&path, text).expect("write");
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("chmod");
        self
    }

    fn look(&self) -> Cni {
        look(&HostRoot::new(self.0.path()), None)
    }

    /// The fault of the first file.
    fn fault(&self) -> CniFault {
        self.look().active().expect("a file").content.clone().expect_err("a fault")
    }
}

#[test]
fn a_good_file_and_its_programs() {
    let node = Node::new()
        .with("10-calico.conflist", GOOD)
        .with("calico-kubeconfig", "secret")
        .binary("calico", "#!/x", 0o755)
        .binary("portmap", "", 0o644);
    let cni = node.look();
    assert_eq!(cni.files.get().map(Vec::len), Some(1));
    assert!(cni.active().is_some_and(|file| file.modified.is_some()));
    assert!(cni.config().is_some_and(|config| config.has("calico") && config.cni_version == "0.3.1"), "{cni:?}");
    let binary = |size, executable, name| {
        Seen::Yes(Binary { path: format!("/opt/cni/bin/{name}"), size, executable, unusable: None })
    };
    assert_eq!(cni.binaries["calico"], binary(4, true, "calico"));
    assert_eq!(cni.binaries["portmap"], binary(0, false, "portmap"));
    assert_eq!(cni.binaries["calico-ipam"], Seen::Absent);
    assert_eq!(cni.loopback, Seen::Absent, "no file names it");
    assert_eq!(node.binary("loopback", "#!/x", 0o755).look().loopback, binary(4, true, "loopback"));
}

#[test]
fn the_order_is_that_of_bytes_and_directories_do_not_count() {
    let node = Node::new()
        .with("9-a.conflist", GOOD)
        .with("10-b.conf", "{")
        .with("05-c.json", "{")
        .with("B.conf", "{")
        .with("a.conf", "{");
    std::fs::create_dir(node.conf("00-d.conf")).expect("mkdir");
    let names: Vec<_> = node.look().files.get().expect("a list").iter().map(|file| file.name.clone()).collect();
    assert_eq!(names, ["05-c.json", "10-b.conf", "9-a.conflist", "B.conf", "a.conf"]);
}

#[test]
fn only_the_first_file_names_programs() {
    let node = Node::new().with("00-bad.conf", "{").with("10-calico.conflist", GOOD);
    assert!(node.look().binaries.is_empty());
}

#[test]
fn a_directory_that_is_empty_missing_or_a_file() {
    let node = Node::new();
    assert_eq!(node.look().files, Seen::Yes(Vec::new()));
    let conf_dir = node.conf("");
    std::fs::remove_dir(&conf_dir).expect("rmdir");
    assert_eq!(node.look().files, Seen::Absent);
    std::fs::write(node.0.path().join("etc/cni/net.d"), "").expect("write");
    assert_eq!(node.look().files.error().map(|error| error.reason), Some(Reason::WrongKind));
}

#[test]
fn a_fifo_does_not_block() {
    let node = Node::new();
    nix::unistd::mkfifo(&node.conf("10-x.conf"), nix::sys::stat::Mode::S_IRUSR).expect("mkfifo");
    assert_eq!(node.fault().to_string(), "is a FIFO, not a regular file");
}

#[test]
fn a_link_to_a_directory_and_a_link_to_nothing() {
    let node = Node::new();
    symlink("/opt/cni/bin", node.conf("10-x.conf")).expect("link");
    assert_eq!(node.fault(), CniFault::NotAFile("a directory".to_owned()));
    let node = Node::new();
    symlink("/nowhere", node.conf("10-x.conf")).expect("link");
    assert!(matches!(node.fault(), CniFault::Unreadable(_)));
}

#[test]
fn a_socket_is_not_a_file() {
    let node = Node::new();
    let _socket = std::os::unix::net::UnixListener::bind(node.conf("10-x.conf")).expect("bind");
    assert_eq!(node.fault(), CniFault::NotAFile("a socket".to_owned()));
}

#[test]
fn a_hundred_megabytes_are_not_read() {
    let node = Node::new().with("10-x.conf", "");
    let file = std::fs::OpenOptions::new().write(true).open(node.conf("10-x.conf")).expect("open");
    file.set_len(100 << 20).expect("truncate");
    assert_eq!(node.fault(), CniFault::TooLarge(100 << 20));
}

#[test]
fn bytes_that_are_no_configuration() {
    let fault = |bytes: &[u8]| Node::new().with("10-x.conflist", bytes).fault();
    assert_eq!(fault(b""), CniFault::Empty);
    assert_eq!(fault(b" \n"), CniFault::Empty);
    assert_eq!(fault(b"{\"name\":\"\xff\"}"), CniFault::NotUtf8(9));
    assert!(matches!(fault(&[0; 4096]), CniFault::NotJson(_)), "what a crash on XFS leaves");
    assert!(matches!(fault(&GOOD.as_bytes()[..60]), CniFault::NotJson(_)));
    assert!(matches!(fault("[".repeat(1 << 20).as_bytes()), CniFault::NotJson(_)), "as deep as the limit allows");
    assert!(matches!(fault(b"[]"), CniFault::NotJson(_)));
}

#[test]
fn fields_that_are_missing_or_wrong() {
    let field = |name: &str, text: &str| match Node::new().with(name, text).fault() {
        CniFault::Field(field) => field,
        other => panic!("{text}: {other:?}"),
    };
    assert_eq!(field("a.conflist", r#"{"plugins":[{"type":"a"}]}"#), "name");
    assert_eq!(field("a.conflist", r#"{"name":"/x","plugins":[{"type":"a"}]}"#), "name");
    assert_eq!(field("a.conflist", r#"{"name":"n"}"#), "plugins");
    assert_eq!(field("a.conflist", r#"{"name":"n","plugins":[]}"#), "plugins");
    assert_eq!(field("a.conflist", r#"{"name":"n","plugins":[{"type":"a"},{}]}"#), "plugins[1].type");
    assert_eq!(field("a.conflist", r#"{"name":"n","plugins":[{"type":"../a"}]}"#), "plugins[0].type");
    assert_eq!(
        field("a.conflist", r#"{"name":"n","plugins":[{"type":"a","ipam":{"type":"b/c"}}]}"#),
        "plugins[0].ipam.type"
    );
    assert_eq!(field("a.conf", GOOD), "type", "a list saved as .conf");
}

#[test]
fn programs_are_found_as_the_runtime_finds_them() {
    let node = Node::new().with("10-x.conf", r#"{"name":"n","type":"bridge","ipam":{}}"#);
    let second = node.0.path().join("second");
    std::fs::create_dir_all(&second).expect("mkdir");
    std::fs::create_dir_all(node.0.path().join("opt/cni/bin/bridge")).expect("a directory of that name");
    std::fs::write(second.join("real"), "x").expect("write");
    symlink("/second/real", second.join("bridge")).expect("link");
    let told =
        ("/etc/cni/net.d".to_owned(), vec!["/opt/cni/bin".to_owned(), "/none".to_owned(), "/second/".to_owned()]);
    let cni = look(&HostRoot::new(node.0.path()), Some(&told));
    assert_eq!(cni.binaries["bridge"].get().map(|binary| binary.path.as_str()), Some("/second/bridge"));
    assert_eq!(cni.told_by, "the runtime's status");
    assert_eq!(Path::new(&cni.conf_dir), Path::new("/etc/cni/net.d"));
}

#[test]
fn versions_marks_and_masses() {
    let fault = |text: &str| Node::new().with("10-x.conf", text).fault();
    let version = |version: &str| format!(r#"{{"cniVersion":{version},"name":"n","type":"a"}}"#);
    assert_eq!(fault(&version("\"2.0.0\"")), CniFault::Version("2.0.0".to_owned()));
    for bad in ["\"0.9.0\"", "\"1.0\"", "\"x\"", "\"1.0.0.0\"", "\"1.0.x\""] {
        assert!(matches!(fault(&version(bad)), CniFault::Version(_)), "{bad}");
    }
    assert_eq!(fault(&version("1")), CniFault::Field("cniVersion".to_owned()));
    for good in ["\"\"", "null", "\"0.1.0\"", "\"0.4.0\"", "\"1.1.0\"", "\"1.2.0\""] {
        assert!(parse(version(good).as_bytes(), false).is_ok(), "{good}");
    }
    assert!(fault("\u{feff}{}").to_string().contains("byte order mark"));
    assert!(fault(&format!("[{}1]", "1,".repeat(VALUES + 1))).to_string().contains("values"));
    let twice = parse(br#"{"name":"n","type":"a","type":"b"}"#, false).expect("the last one counts");
    assert_eq!(twice.plugins[0].kind, "b");
}

#[test]
fn what_delegates_names_those_it_delegates_to() {
    let kinds = |text: &str| -> Vec<String> {
        parse(text.as_bytes(), false).expect("good").plugins.into_iter().map(|plugin| plugin.kind).collect()
    };
    assert_eq!(kinds(r#"{"name":"n","type":"flannel"}"#), ["flannel", "bridge"]);
    assert_eq!(kinds(r#"{"name":"n","type":"flannel","delegate":{"type":"ipvlan"}}"#), ["flannel", "ipvlan"]);
    let delegates = r#"{"name":"n","type":"multus","delegates":[{"type":"a"},{"plugins":[{"type":"b"},{"type":"c"}]},
        {"type":"multus","delegates":[{"type":"d"}]}]}"#;
    assert_eq!(kinds(delegates), ["multus", "a", "b", "c"]);
    assert!(parse(br#"{"name":"n","type":"multus","delegates":[{}]}"#, false).is_err());
    let shim = r#"{"name":"n","type":"multus-shim","clusterNetwork":"/host/etc/cni/net.d/10-calico.conflist",
        "kubeconfig":"/etc/cni/net.d/multus.d/multus.kubeconfig"}"#;
    let shim = parse(shim.as_bytes(), false).expect("good").plugins.remove(0);
    assert_eq!(shim.awaits, ["/etc/cni/net.d/10-calico.conflist"]);
    assert_eq!(shim.kubeconfig.as_deref(), Some("/etc/cni/net.d/multus.d/multus.kubeconfig"));
    let calico = r#"{"name":"n","type":"calico","etcd_endpoints":"https://a","kubernetes":{"kubeconfig":"/k"}}"#;
    let calico = parse(calico.as_bytes(), false).expect("good").plugins.remove(0);
    assert!(calico.etcd && calico.kubeconfig.as_deref() == Some("/k"), "{calico:?}");
}

#[test]
fn cri_o_goes_on_to_the_next_file() {
    let node = Node::new().with("00-bad.conf", "{").with("10-calico.conflist", GOOD);
    assert_eq!(node.look().active().map(|file| file.name.as_str()), Some("00-bad.conf"));
    std::fs::create_dir_all(node.0.path().join("run/crio")).expect("mkdir");
    std::fs::write(node.0.path().join("run/crio/crio.sock"), "").expect("write");
    let cni = node.look();
    assert_eq!(cni.active().map(|file| file.name.as_str()), Some("10-calico.conflist"));
    assert_eq!(cni.binaries.len(), 3);
    let told = ("/etc/cni/net.d".to_owned(), Vec::new());
    assert!(!look(&HostRoot::new(node.0.path()), Some(&told)).passes_over, "containerd has told its directories");
}

#[test]
fn credentials_and_the_nodes_name_are_looked_at() {
    let text = r#"{"name":"n","type":"calico","kubernetes":{"kubeconfig":"/etc/cni/net.d/calico-kubeconfig"}}"#;
    let node = Node::new().with("10-calico.conf", text);
    assert_eq!(node.look().kubeconfigs["/etc/cni/net.d/calico-kubeconfig"], Seen::Absent);
    assert_eq!(node.look().nodename, Seen::Absent);
    std::fs::create_dir_all(node.0.path().join("var/lib/calico")).expect("mkdir");
    std::fs::write(node.0.path().join("var/lib/calico/nodename"), "n1\n").expect("write");
    let cni = node.with("calico-kubeconfig", "x").look();
    assert_eq!(cni.nodename, Seen::Yes("n1".to_owned()));
    assert!(cni.kubeconfigs.values().all(|seen| seen.get().is_some_and(|it| it.fault.is_some())), "{cni:?}");
}

proptest::proptest! {
    #[test]
    fn no_bytes_make_it_panic(bytes: Vec<u8>, is_list: bool) {
        let _ = parse(&bytes, is_list);
    }
}
