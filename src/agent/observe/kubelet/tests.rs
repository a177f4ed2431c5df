//! Kubelets with files, with arguments, with both, and with files that are broken.

use super::*;
use crate::facts::Quantity;

const KUBECONFIG: &str = r"apiVersion: v1
kind: Config
current-context: b
clusters:
- {name: one, cluster: {server: 'https://one:6443', certificate-authority: pki/ca.crt}}
- {name: two, cluster: {server: 'https://two:6443', certificate-authority-data: QQ==}}
contexts:
- {name: a, context: {cluster: one, user: u}}
- {name: b, context: {cluster: two, user: u}}
users:
- {name: u, user: {token: very-secret}}
";

struct Node(tempfile::TempDir);

impl Node {
    fn new() -> Self {
        Node(tempfile::tempdir().expect("a temporary directory"))
    }

    fn with(self, path: &str, text: &str) -> Self {
        let path = self.0.path().join(path.trim_start_matches('/'));
        std::fs::create_dir_all(path.parent().expect("not the root")).expect("mkdir");
        std::fs::write(path, text).expect("write");
        self
    }

    fn host(&self) -> HostRoot {
        HostRoot::new(self.0.path())
    }

    fn look(&self, line: &str) -> Result<Kubelet, LookError> {
        let arguments: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        look(&self.host(), (!arguments.is_empty()).then_some(&arguments))
    }
}

fn configured(text: &str) -> Kubelet {
    Node::new().with("/var/lib/kubelet/config.yaml", text).look("").expect("a file")
}

#[test]
fn the_client_certificate_of_the_context_in_use() {
    let mut params = rcgen::CertificateParams::new(vec!["node".to_owned()]).expect("a name");
    params.not_after = rcgen::date_time_ymd(2031, 2, 3);
    let pem = params.self_signed(&rcgen::KeyPair::generate().expect("a key")).expect("a certificate").pem();
    let file = "/var/lib/kubelet/pki/kubelet-client-current.pem";
    let named = KUBECONFIG.replace(
        "user: {token: very-secret}",
        "user: {client-certificate: ../../var/lib/kubelet/pki/kubelet-client-current.pem}",
    );
    let look = |kubeconfig: &str, pem: &str, rotate: &str| {
        let node = Node::new().with("/etc/kubernetes/kubelet.conf", kubeconfig).with(file, pem);
        node.with("/var/lib/kubelet/config.yaml", rotate).look("").expect("files").client_certificate
    };
    let Seen::Yes(seen) = look(&named, &pem, "rotateCertificates: true") else { panic!("seen") };
    assert!(seen.rotates && seen.not_after.to_string() == "2031-02-03T00:00:00Z", "{seen:?}");
    assert!(look(&named, &pem, "{}").get().is_some_and(|seen| !seen.rotates));
    assert_eq!(look(&named, "cut", "{}").error().map(|error| error.reason), Some(Reason::Malformed));
    assert_eq!(look(KUBECONFIG, &pem, "{}"), Seen::Absent, "a token");
    let gone = named.replace("client-current", "client-gone");
    assert_eq!(look(&gone, &pem, "{}").error().map(|error| error.reason), Some(Reason::Failed));
}

#[test]
fn the_serving_certificate_where_it_is_not_its_own_and_the_place_of_static_pods() {
    let pem = rcgen::generate_simple_self_signed(vec!["node".to_owned()]).expect("a certificate").cert.pem();
    let signed = "/var/lib/kubelet/pki/kubelet-server-current.pem";
    let look = |configuration: &str, line: &str| {
        let node = Node::new().with("/var/lib/kubelet/config.yaml", configuration).with("/own/tls.crt", &pem);
        node.with(signed, &pem).look(line).expect("files")
    };
    let serving = |configuration: &str, line: &str| {
        look(configuration, line).serving_certificate.get().map(|seen| (seen.path.clone(), seen.rotates))
    };
    assert_eq!(serving("serverTLSBootstrap: true", ""), Some((signed.to_owned(), true)));
    assert_eq!(serving("tlsCertFile: /own/tls.crt", ""), Some(("/own/tls.crt".to_owned(), false)));
    assert_eq!(serving("{}", "kubelet --rotate-server-certificates=true"), Some((signed.to_owned(), true)));
    assert_eq!(look("{}", "").serving_certificate, Seen::Absent, "an old one is of no use");
    assert_eq!(look("serverTLSBootstrap: true", "kubelet --cert-dir=/none").serving_certificate, Seen::Absent);
    assert_eq!(look("{}", "").static_pods, "/etc/kubernetes/manifests");
    assert_eq!(look("staticPodPath: /pods/", "").static_pods, "/pods");
    let domain = |configuration: &str, line: &str| look(configuration, line).cluster_domain;
    assert_eq!(domain("{}", ""), None);
    assert_eq!(domain("clusterDomain: prod.example", "").as_deref(), Some("prod.example"));
    assert_eq!(domain("clusterDomain: a.b", "kubelet --cluster-domain=c.d.").as_deref(), Some("c.d."));
    for no_name in ["''".to_owned(), "a..b".to_owned(), "x".repeat(64), "x.".repeat(101)] {
        assert_eq!(domain(&format!("clusterDomain: {no_name}"), ""), None, "{no_name}");
    }
}

#[test]
fn manifests_are_read_where_the_kubelet_was_told_to() {
    let pod = "kind: Pod\nmetadata: {name: a}\nspec: {containers: [{name: a}]}\n";
    let look = |configuration: &str, line: &str| {
        let node = Node::new().with("/var/lib/kubelet/config.yaml", configuration);
        node.with("/etc/kubernetes/manifests/a.yaml", pod).look(line).expect("files").manifests
    };
    let named = "staticPodPath: /etc/kubernetes/manifests/";
    for (configuration, line, count) in [
        ("{}", "kubelet", None),
        (named, "", Some(1)),
        ("{}", "kubelet --pod-manifest-path=/etc/kubernetes/manifests", Some(1)),
        ("staticPodPath: /none", "", None),
    ] {
        assert_eq!(look(configuration, line).get().map(Vec::len), count, "{configuration} {line}");
    }
}

#[test]
fn no_kubelet_at_all() {
    assert_eq!(Node::new().look("").expect_err("nothing").reason, Reason::Missing);
}

#[test]
fn a_process_alone_means_the_defaults() {
    let kubelet = Node::new().look("/usr/bin/kubelet --v=2").expect("it runs");
    assert_eq!((kubelet.healthz_port, kubelet.eviction), (10248, EvictionThresholds::default()));
    assert_eq!((kubelet.config_path, kubelet.config_error, kubelet.server), (None, None, None));
}

#[test]
fn well_known_files() {
    let node = Node::new()
        .with("/var/lib/kubelet/config.yaml", "kind: KubeletConfiguration\nhealthzPort: 0\ncontainerRuntimeEndpoint: unix:///run/c.sock\nfuture: {x: [1]}\n")
        .with("/etc/kubernetes/kubelet.conf", KUBECONFIG);
    let kubelet = node.look("").expect("files");
    assert_eq!(kubelet.server.as_deref(), Some("https://two:6443"));
    assert_eq!((kubelet.healthz_port, kubelet.runtime_endpoint.as_deref()), (0, Some("/run/c.sock")));
    assert_eq!(kubelet.eviction, EvictionThresholds::default());
    assert!(!format!("{kubelet:?}").contains("secret"));
}

#[test]
fn arguments_win_over_files() {
    let node = Node::new()
        .with("/a.yaml", "healthzPort: 1\nevictionHard: {memory.available: 1Gi}\n")
        .with("/b.conf", KUBECONFIG)
        .with("/etc/kubernetes/kubelet.conf", "broken");
    let kubelet = node
        .look("kubelet --config=/no --config /a.yaml --kubeconfig=/b.conf --healthz-port=7 --eviction-hard=nodefs.available<20% --container-runtime-endpoint unix:///run/x.sock")
        .expect("it runs");
    assert_eq!(
        (kubelet.config_path.as_deref(), kubelet.server.as_deref()),
        (Some("/a.yaml"), Some("https://two:6443"))
    );
    assert_eq!((kubelet.healthz_port, kubelet.runtime_endpoint.as_deref()), (7, Some("/run/x.sock")));
    assert_eq!((kubelet.eviction.nodefs, kubelet.eviction.memory), (Quantity::Percent(20.0), Quantity::Absolute(0)));
}

#[test]
fn one_key_switches_the_others_off_unless_merged() {
    let off = Quantity::Absolute(0);
    let some = configured(
        "evictionHard:\n  memory.available: 500Mi\n  nodefs.available: \"12%\"\n  imagefs.inodesFree: 1000\n",
    )
    .eviction;
    assert_eq!((some.memory, some.nodefs), (Quantity::Absolute(500 << 20), Quantity::Percent(12.0)));
    assert_eq!((some.nodefs_inodes, some.imagefs, some.imagefs_inodes), (off, off, Quantity::Absolute(1000)));
    let merged = configured("mergeDefaultEvictionSettings: true\nevictionHard: {memory.available: 500Mi}\n").eviction;
    assert_eq!(merged, EvictionThresholds { memory: Quantity::Absolute(500 << 20), ..EvictionThresholds::default() });
    assert_eq!(configured("evictionHard:\n").eviction, EvictionThresholds::default(), "null is not set");
    assert_eq!(configured("evictionHard: {}\n").eviction.memory, off, "empty is set");
    assert_eq!(configured("").eviction, EvictionThresholds::default());
}

#[test]
fn soft_thresholds_and_the_collection_of_images() {
    let kubelet = configured(
        "evictionSoft: {memory.available: 1Gi, nodefs.available: 20%}\nimageGCHighThresholdPercent: 70\ncgroupRoot: /x\n",
    );
    assert_eq!(
        (kubelet.capacity.soft.memory, kubelet.capacity.soft.imagefs),
        (Quantity::Absolute(1 << 30), Quantity::Absolute(0))
    );
    assert_eq!((kubelet.capacity.image_gc_high_percent, kubelet.capacity.cgroup_root.as_str()), (Some(70), "/x"));
    assert_eq!(kubelet.eviction, EvictionThresholds::default());
    let node = Node::new().with("/a.yaml", "imageGCHighThresholdPercent: 70\n");
    let kubelet = node
        .look("kubelet --config=/a.yaml --image-gc-high-threshold=100 --eviction-soft=imagefs.available<30% --eviction-hard=pid.available<100,nodefs.available<100%")
        .expect("it runs");
    assert_eq!(kubelet.capacity.image_gc_high_percent, None, "switched off");
    assert_eq!(kubelet.capacity.soft.imagefs, Quantity::Percent(30.0));
    assert_eq!((kubelet.eviction.pid, kubelet.eviction.nodefs), (Quantity::Absolute(100), Quantity::Absolute(0)));
}

#[test]
fn a_drop_in_directory_is_merged_in_the_order_of_names_and_arguments_win() {
    let node = Node::new()
        .with("/a.yaml", "healthzPort: 1\nimageGCHighThresholdPercent: 70\n")
        .with("/d/20-b.conf", "evictionHard: {memory.available: 2Gi}\n")
        .with(
            "/d/10-a.conf",
            "healthzPort: 3\nclusterDomain: a.b\nevictionHard: {memory.available: 1Gi, nodefs.available: 7%}\n",
        )
        .with("/d/30/c.conf", "evictionSoft: {nodefs.available: 30%}\n")
        .with("/d/40-no.yaml", "healthzPort: 4\n");
    let kubelet = node.look("kubelet --config=/a.yaml --config-dir=/d/").expect("it runs");
    assert_eq!((kubelet.healthz_port, kubelet.capacity.image_gc_high_percent), (3, Some(70)));
    assert_eq!(kubelet.cluster_domain.as_deref(), Some("a.b"));
    assert_eq!(
        (kubelet.eviction.memory, kubelet.eviction.nodefs),
        (Quantity::Absolute(2 << 30), Quantity::Percent(7.0))
    );
    assert_eq!(kubelet.eviction.imagefs, Quantity::Percent(15.0), "the defaults are there before a drop-in is merged");
    assert_eq!((kubelet.capacity.soft.nodefs, kubelet.config_error), (Quantity::Percent(30.0), None));
    let node = node.with("/d/15-broken.conf", "healthzPort: [\n");
    let kubelet = node.look("kubelet --config=/a.yaml --config-dir /d --healthz-port=9").expect("it runs");
    assert_eq!((kubelet.healthz_port, kubelet.eviction.memory), (9, Quantity::Absolute(2 << 30)));
    assert!(kubelet.config_error.expect("one is broken").starts_with("/d/15-broken.conf: "));
}

#[test]
fn a_broken_configuration_says_where_and_what_to_do() {
    let kubelet = configured("healthzPort: 1\nevictionHard:\n  memory.available: [1\n");
    let error = kubelet.config_error.expect("broken");
    assert!(error.starts_with("/var/lib/kubelet/config.yaml: line ") && error.contains("correct this"), "{error}");
    assert_eq!((kubelet.eviction, kubelet.healthz_port), (EvictionThresholds::default(), 10248));
    let error = configured("healthzPort: 1\nhealthzPort: many\n").config_error.expect("broken");
    assert!(error.contains("line 2"), "{error}");
    let error = configured("evictionHard: {memory.available: much}\n").config_error.expect("no quantity");
    assert!(error.contains("memory.available is \"much\""), "{error}");
    let error = Node::new().look("kubelet --config=/none.yaml").expect("it runs").config_error.expect("missing");
    assert!(error.starts_with("/none.yaml: "), "{error}");
}

#[test]
fn a_configuration_that_is_a_fifo_or_a_bomb() {
    let node = Node::new().with("/var/lib/kubelet/x", "");
    nix::unistd::mkfifo(&node.0.path().join("var/lib/kubelet/config.yaml"), nix::sys::stat::Mode::S_IRUSR)
        .expect("mkfifo");
    let error = node.look("").expect("a file").config_error.expect("a FIFO");
    assert!(error.contains("is a FIFO"), "{error}");
    let bomb = (1..30).fold("a0: &a0 [x]\n".to_owned(), |text, n| {
        let list = vec![format!("*a{}", n - 1); 9].join(", ");
        format!("{text}a{n}: &a{n} [{list}]\n")
    });
    assert!(configured(&format!("{bomb}evictionHard: *a29\n")).config_error.is_some());
    assert!(configured(&"[".repeat(100_000)).config_error.is_some());
}

#[test]
fn a_kubeconfig_never_quotes_its_secrets() {
    let node = Node::new().with("/k", "users: very-secret\nclusters: very-secret\n");
    let error = kubeconfig::cluster(&node.host(), "/k").expect_err("broken");
    assert_eq!(error.reason, Reason::Malformed);
    assert!(!error.to_string().contains("secret"), "{error}");
    let empty = Node::new().with("/k", "clusters: []\n");
    assert_eq!(kubeconfig::cluster(&empty.host(), "/k").expect_err("no server").reason, Reason::Missing);
}

#[test]
fn paths_are_relative_to_the_kubeconfig() {
    let node = Node::new().with("/etc/kubernetes/k", &KUBECONFIG.replace("current-context: b", "current-context: a"));
    let cluster = kubeconfig::cluster(&node.host(), "/etc/kubernetes/k").expect("good");
    assert_eq!(cluster.certificate_authority.as_deref(), Some("/etc/kubernetes/pki/ca.crt"));
}
