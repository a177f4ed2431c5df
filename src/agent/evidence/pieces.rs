//! Which pieces there are: the table of what an engineer asks for first, the most volatile ahead.

/// How much is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Depth {
    /// By a person on the node: files, and what tools print.
    All,
    /// By the agent: files, and of the tools only `dmesg`.
    Light,
}

/// Where a piece comes from.
#[derive(Debug, Clone, Copy)]
pub(super) enum From {
    /// The beginning of a file.
    File(&'static str),
    /// The regular files of a directory.
    Files(&'static str),
    /// Names, sizes and times of what is in a directory.
    Listing(&'static str),
    /// The newest lines of a container's logs: the beginning of the pod's name, and the container.
    Log(&'static str, &'static str),
    /// What a program prints.
    Program(&'static [&'static str]),
    /// Facts, manifest and summary of each bundle in a directory.
    Bundles(&'static str),
    /// A page of the agent that runs on this node.
    Page(&'static str),
}

/// A piece of evidence.
#[derive(Debug)]
pub(super) struct Piece {
    /// The key of its kind.
    pub(super) key: &'static str,
    /// Its file in the bundle; of several files the directory.
    pub(super) name: &'static str,
    pub(super) from: From,
    /// Longest, in KiB.
    pub(super) kib: u64,
    light: bool,
}

impl Piece {
    pub(super) fn is_for(&self, depth: Depth) -> bool {
        self.light || depth == Depth::All
    }

    /// What it is of, for the manifest.
    pub(super) fn of(&self) -> String {
        match self.from {
            From::File(path) | From::Files(path) | From::Listing(path) | From::Bundles(path) => path.to_owned(),
            From::Log(pod, container) => format!("log of {container} in {pod}*"),
            From::Program(argv) => argv.join(" "),
            From::Page(path) => format!("the agent's page {path}"),
        }
    }
}

const fn file(key: &'static str, name: &'static str, path: &'static str) -> Piece {
    Piece { key, name, from: From::File(path), kib: 256, light: true }
}

const fn program(key: &'static str, name: &'static str, argv: &'static [&'static str], kib: u64) -> Piece {
    Piece { key, name, from: From::Program(argv), kib, light: false }
}

const fn page(key: &'static str, name: &'static str, path: &'static str) -> Piece {
    Piece { key, name, from: From::Page(path), kib: 2048, light: false }
}

const fn log(key: &'static str, name: &'static str, pod: &'static str, container: &'static str) -> Piece {
    Piece { key, name, from: From::Log(pod, container), kib: 256, light: true }
}

const fn files(key: &'static str, name: &'static str, path: &'static str) -> Piece {
    Piece { key, name, from: From::Files(path), kib: 64, light: true }
}

const fn listing(key: &'static str, name: &'static str, path: &'static str) -> Piece {
    Piece { key, name, from: From::Listing(path), kib: 64, light: true }
}

/// The last walks to the control plane.
pub(super) const PROBES: &str = "network/probes.json";

/// All pieces beside the facts.
pub(super) const PIECES: &[Piece] = &[
    // E20, the network, as people read it.
    program("E20", "network/links.txt", &["ip", "-s", "-d", "link"], 1024),
    program("E20", "network/addresses.txt", &["ip", "address"], 1024),
    program("E20", "network/routes.txt", &["ip", "route", "show", "table", "all"], 4096),
    program("E20", "network/routes-ipv6.txt", &["ip", "-6", "route", "show", "table", "all"], 4096),
    program("E20", "network/rules.txt", &["ip", "rule"], 256),
    program("E20", "network/rules-ipv6.txt", &["ip", "-6", "rule"], 256),
    program("E20", "network/neighbours.txt", &["ip", "-s", "neighbour"], 1024),
    program("E20", "network/sockets.txt", &["ss", "-s"], 64),
    // E21, the packet filter.
    program("E21", "filter/iptables-save.txt", &["iptables-save", "-c"], 8192),
    program("E21", "filter/ip6tables-save.txt", &["ip6tables-save", "-c"], 8192),
    program("E21", "filter/iptables-legacy-save.txt", &["iptables-legacy-save", "-c"], 8192),
    program("E21", "filter/ip6tables-legacy-save.txt", &["ip6tables-legacy-save", "-c"], 8192),
    program("E21", "filter/nft.txt", &["nft", "list", "ruleset"], 8192),
    program("E21", "filter/ipset.txt", &["ipset", "list", "-t"], 1024),
    program("E21", "filter/conntrack.txt", &["conntrack", "-S"], 64),
    // E16, how connections begin and end: three seconds of SYN, RST, ICMP, ARP and BGP, headers only.
    program(
        "E16",
        "network/capture.txt",
        &[
            "timeout",
            "--preserve-status",
            "--signal=INT",
            "3",
            "tcpdump",
            "-p",
            "-n",
            "-l",
            "-i",
            "any",
            "-c",
            "2000",
            "-s",
            "96",
            "arp or icmp or icmp6 or tcp port 179 or tcp[tcpflags] & (tcp-syn|tcp-rst) != 0",
        ],
        512,
    ),
    // E27, the last walks to the control plane, and E11, what the agent believes and counts.
    page("E27", PROBES, "/probes"),
    page("E11", "agent/findings.json", "/findings"),
    page("E11", "agent/metrics.txt", "/metrics"),
    // E22, CNI.
    listing("E22", "cni/net.d.txt", "/etc/cni/net.d"),
    files("E22", "cni/net.d", "/etc/cni/net.d"),
    listing("E22", "cni/bin.txt", "/opt/cni/bin"),
    files("E22", "calico", "/var/lib/calico"),
    // E23, kubelet and runtime.
    program(
        "E23",
        "kubelet/journal.txt",
        &["journalctl", "--no-pager", "--utc", "--since=-30min", "-u", "kubelet"],
        4096,
    ),
    program(
        "E23",
        "runtime/journal.txt",
        &["journalctl", "--no-pager", "--utc", "--since=-30min", "-u", "containerd", "-u", "crio"],
        4096,
    ),
    program("E23", "runtime/info.json", &["crictl", "--timeout=4s", "info"], 256),
    program("E23", "runtime/sandboxes.txt", &["crictl", "--timeout=4s", "pods"], 1024),
    program("E23", "runtime/containers.txt", &["crictl", "--timeout=4s", "ps", "-a"], 1024),
    file("E23", "runtime/containerd.toml", "/etc/containerd/config.toml"),
    file("E23", "kubelet/config.yaml", "/var/lib/kubelet/config.yaml"),
    file("E23", "kubelet/kubeconfig.yaml", "/etc/kubernetes/kubelet.conf"),
    listing("E23", "kubelet/pki.txt", "/var/lib/kubelet/pki"),
    // E24, capacity.
    file("E24", "kernel/meminfo", "/proc/meminfo"),
    file("E24", "kernel/loadavg", "/proc/loadavg"),
    file("E24", "kernel/vmstat", "/proc/vmstat"),
    file("E24", "kernel/mountinfo", "/proc/1/mountinfo"),
    file("E24", "kernel/diskstats", "/proc/diskstats"),
    file("E24", "kernel/file-nr", "/proc/sys/fs/file-nr"),
    files("E24", "kernel/pressure", "/proc/pressure"),
    file("E24", "kernel/net-dev", "/proc/1/net/dev"),
    file("E24", "kernel/net-snmp", "/proc/1/net/snmp"),
    file("E24", "kernel/net-netstat", "/proc/1/net/netstat"),
    file("E24", "kernel/net-sockstat", "/proc/1/net/sockstat"),
    file("E24", "kernel/nf-conntrack", "/proc/1/net/stat/nf_conntrack"),
    program("E24", "kernel/processes.txt", &["ps", "-eo", "pid,ppid,stat,lstart,rss,nlwp,wchan:32,comm"], 1024),
    program("E24", "kernel/disks.txt", &["df", "-PTil"], 256),
    // E26, the kernel's log.
    Piece { light: true, ..program("E26", "kernel/log.txt", &["dmesg", "--syslog", "--time-format=iso"], 1024) },
    // E32, who it is.
    file("E32", "identity/uptime", "/proc/uptime"),
    file("E32", "identity/version", "/proc/version"),
    file("E32", "identity/os-release", "/etc/os-release"),
    file("E32", "identity/product-uuid", "/sys/class/dmi/id/product_uuid"),
    // E11, what this product has seen before.
    file("E11", "journal.json", "/var/lib/nodevitals/state.json"),
    // What the agent kept when it began, whole enough to be judged again.
    Piece {
        key: "E20-E32",
        name: "kept",
        from: From::Bundles("/var/lib/nodevitals/evidence"),
        kib: 6144,
        light: false,
    },
    // E03 to E06 and E09, logs, which last longest.
    log("E03", "logs/calico-node", "calico-node-", "calico-node"),
    log("E04", "logs/install-cni", "calico-node-", "install-cni"),
    log("E05", "logs/calico-extension", "calico-node-", "calico-extension"),
    log("E06", "logs/calico-extension-roks", "ibm-keepalived-watcher-", "calico-extension"),
    log("E09", "logs/kube-controllers", "calico-kube-controllers-", "calico-kube-controllers"),
    log("E23", "logs/kube-proxy", "kube-proxy-", "kube-proxy"),
];
