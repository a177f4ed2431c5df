//! A worker that holds what a recorded one held: kernel state in namespaces of its own, files below a root of its own,
//! and stand-ins for its programs and for what they answer.

mod program;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

use super::bird::Bird;
use super::files::Recording;
use super::ports::Ports;
use super::runtime::{ContainerRuntime, pods};
use crate::support::host::Host;
use crate::support::netns::NetNs;
use crate::support::wait::within;

pub use self::program::{codes, headline};

/// What the first process of the worker does: a root directory with this network's `/proc` and `/sys`.
const SETUP: &str = "
mount --bind $ROOT $ROOT
mount --rbind /proc $ROOT/proc
mount -t sysfs sysfs $ROOT/sys
";

/// The control plane's address, which is the gateway's too.
pub(super) const MASTER: &str = "10.77.0.1";

/// Port of the control plane as the kubelet reaches it.
const KUBELETS_API: u16 = 6443;
/// Port of the one to which the agent writes, where there is one.
const API: u16 = 6444;

const KUBELET_CONFIG: &str = r#"{"kind": "KubeletConfiguration", "apiVersion": "kubelet.config.k8s.io/v1beta1", "clusterDomain": "cluster.local",
"containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock", "imageGCHighThresholdPercent": 100,
"evictionHard": {"memory.available": "1Mi", "nodefs.available": "0%", "imagefs.available": "0%"}}"#;

/// The worker's disk is the machine's, which others fill and empty meanwhile.
const CONFIG: &str = "limits: {imminentPoints: 0, imminentMinutes: 0}\n";

/// A recorded worker.
pub struct Node {
    name: String,
    pub(super) host: Host,
    /// The other ends of its cables: pods, and the network that the uplink leads to.
    pub(super) far: NetNs,
    root: TempDir,
    bird: Option<Bird>,
    ports: BTreeMap<u16, Ports>,
    containerd: ContainerRuntime,
    /// Stand-ins that run: short name and command line, and the process's number on it.
    programs: BTreeMap<String, String>,
    pub(super) links: BTreeSet<String>,
    pub(super) routes: BTreeSet<String>,
    /// Whether what legacy iptables translates is not asked of nf_tables any more. The kernel asks the backend first whose
    /// hook came last; on the recorded nodes that was nf_tables.
    pub legacy_decides: bool,
    /// What it holds now.
    held: Recording,
    // Last: what it serves ends before it does.
    tokio: tokio::runtime::Runtime,
    /// What answers at the kubelet's server.
    master: Ports,
}

impl Node {
    /// The worker in this phase of the incident.
    pub fn recorded(incident: &str, phase: &str, node: &str) -> Result<Self> {
        let mut machine = Self::empty(node)?;
        machine.become_(&Recording::read(incident, phase, node)?)?;
        Ok(machine)
    }

    /// A worker that runs nothing and has no Kubernetes in it, but for the files of a kubelet.
    pub fn empty(name: &str) -> Result<Self> {
        let root = tempfile::tempdir()?;
        let at = |inside: &str| root.path().join(inside);
        for directory in [
            "proc",
            "sys",
            "etc/cni/net.d",
            "etc/kubernetes",
            "etc/containerd",
            "opt/cni/bin",
            "run/containerd",
            "run/calico",
        ] {
            fs::create_dir_all(at(directory))?;
        }
        for directory in ["var/lib/kubelet", "var/lib/calico", "var/lib/containerd", "var/log", "programs", "logs"] {
            fs::create_dir_all(at(directory))?;
        }
        std::os::unix::fs::symlink("../run", at("var/run"))?;
        fs::write(at("etc/hostname"), format!("{name}\n"))?;
        fs::write(at("etc/machine-id"), "b08dfa6083e7567a1921a715000001fb\n")?;
        fs::write(at("etc/containerd/config.toml"), "version = 2\n")?;
        fs::write(at("var/lib/kubelet/config.yaml"), KUBELET_CONFIG)?;
        fs::write(at("etc/kubernetes/kubelet.conf"), at_master(KUBELETS_API))?;
        fs::write(at("logs/nodevitals.yaml"), CONFIG)?;
        let fifo = at("programs/hold");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRUSR)?;

        let host = Host::start(name, SETUP, &[("ROOT", root.path().as_os_str())], &at("logs"))?;
        let far = NetNs::new()?;
        let tokio = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let containerd = ContainerRuntime::start(tokio.handle(), &at("run/containerd/containerd.sock"))?;
        let mut master = Ports::default();
        let listener = far.run(|| TcpListener::bind(("0.0.0.0", KUBELETS_API)))?;
        master.serve(tokio.handle(), listener, BTreeMap::from([("/version".to_owned(), (200, "{}".to_owned()))]))?;
        Ok(Node {
            name: name.to_owned(),
            host,
            far,
            root,
            bird: None,
            ports: BTreeMap::new(),
            containerd,
            programs: BTreeMap::new(),
            links: BTreeSet::new(),
            routes: BTreeSet::new(),
            legacy_decides: false,
            held: Recording::default(),
            tokio,
            master,
        })
    }

    /// Turns it into what was recorded, part by part, in the order in which a worker comes up. What is the same already is
    /// left alone.
    pub fn become_(&mut self, recording: &Recording) -> Result<()> {
        self.set_switches(recording)?;
        self.containerd.end_others(&pods(recording)?);
        self.set_network(recording)?;
        self.set_rules(recording)?;
        self.set_files(recording)?;
        self.containerd.tell(recording)?;
        self.set_bird(recording)?;
        self.set_ports(recording)?;
        self.set_programs(recording)?;
        self.held = recording.clone();
        Ok(())
    }

    /// Whether one of these files, or one in a directory of this name, is not what it holds.
    fn differs(&self, recording: &Recording, name: &str) -> bool {
        let files = |it: &Recording| {
            it.matching(name).map(|(name, text)| (name.to_owned(), text.to_owned())).collect::<Vec<_>>()
        };
        files(&self.held) != files(recording)
    }

    /// The switches of its network stack.
    pub fn set_switches(&self, recording: &Recording) -> Result<()> {
        for (name, value) in recording.text("sysctl.txt")?.lines().filter_map(|line| line.split_once(':')) {
            // Those of a link come after the link; all links begin with the default.
            if !name.starts_with("conf/eth") {
                self.run(&["sh", "-c", &format!("echo {value} > /proc/sys/net/ipv4/{name}")])?;
            }
        }
        Ok(())
    }

    /// The packet filter, as `iptables-restore` sets it: each table in one transaction.
    pub fn set_rules(&self, recording: &Recording) -> Result<()> {
        let mut saved = [
            ("ipset -exist restore", "ipset-save.txt"),
            ("iptables-legacy-restore", "iptables-legacy-save.txt"),
            ("iptables-nft-restore", "iptables-nft-save.txt"),
            ("ip6tables-nft-restore", "ip6tables-nft-save.txt"),
        ];
        if self.legacy_decides {
            saved.swap(1, 2);
        }
        for (restore, file) in saved {
            if self.differs(recording, file) {
                // Its own lock, not that of the machine.
                let lock = self.path("run/xtables.lock");
                self.feed(&format!("XTABLES_LOCKFILE={} {restore}", lock.display()), recording.text(file)?)?;
            }
        }
        Ok(())
    }

    /// CNI programs and configuration, in the order in which install-cni writes them, and Calico's files.
    pub fn set_files(&self, recording: &Recording) -> Result<()> {
        let programs = recording.text("cni-bin.txt")?.lines().filter_map(|line| line.split_once(' '));
        let programs = programs.map(|(_, name)| (name, "#!/bin/sh\nexit 0\n".to_owned())).collect();
        sync(&self.path("opt/cni/bin"), &programs, 0o755)?;
        let configuration: BTreeMap<&str, String> = recording
            .directory("cni-net.d")
            .map(|(name, text)| {
                (name, if name == "calico-kubeconfig" { at_master(KUBELETS_API) } else { text.to_owned() })
            })
            .collect();
        sync(&self.path("etc/cni/net.d"), &configuration, 0o600)?;
        let files = recording.text("var-lib-calico.txt")?.lines().filter_map(|line| line.split_once(':'));
        sync(&self.path("var/lib/calico"), &files.map(|(name, value)| (name, value.to_owned())).collect(), 0o644)
    }

    /// BIRD's control socket.
    pub fn set_bird(&mut self, recording: &Recording) -> Result<()> {
        if self.bird.is_some() && !self.differs(recording, "bird-") {
            return Ok(());
        }
        self.bird = None;
        let listed = recording.text("calico-run.txt")?.lines().any(|line| line.ends_with(" bird.ctl"));
        ensure!(listed, "a recording without BIRD's socket");
        self.bird = Some(Bird::start(self.tokio.handle(), &self.path("run/calico/bird.ctl"), recording)?);
        Ok(())
    }

    /// The health ports.
    pub fn set_ports(&mut self, recording: &Recording) -> Result<()> {
        let tokio = self.tokio.handle().clone();
        for (port, component) in super::ports::PORTS {
            if self.ports.contains_key(&port) && !self.differs(recording, &format!("http/{component}")) {
                continue;
            }
            self.ports.remove(&port);
            // The task of the old one ends in its own time, and only then is the port free again.
            let open = || self.host.run_in_network(|| Ports::open(&tokio, port, component, recording))?;
            let opened = within(Duration::from_secs(5), open)?;
            self.ports.insert(port, opened);
        }
        Ok(())
    }

    /// The worker's programs: those that do not run any more are killed, the others started, stopped or woken.
    pub fn set_programs(&mut self, recording: &Recording) -> Result<()> {
        let wanted: BTreeMap<&str, &str> = recording
            .text("ps.txt")?
            .lines()
            .filter_map(|line| line.split_once(' '))
            .map(|(state, command)| (command, state))
            .collect();
        let mut shell = String::new();
        self.programs.retain(|command, pid| {
            let stays = wanted.contains_key(command.as_str());
            if !stays {
                writeln!(shell, "kill -KILL {pid}").expect("into memory");
            }
            stays
        });
        let starting: Vec<&str> =
            wanted.keys().copied().filter(|command| !self.programs.contains_key(*command)).collect();
        for command in &starting {
            writeln!(shell, "{} </dev/null >/dev/null 2>&1 & echo $!", self.stand_in(command)?)?;
        }
        let pids = self.run(&["sh", "-c", &shell])?;
        self.programs.extend(starting.iter().map(ToString::to_string).zip(pids.lines().map(str::to_owned)));
        let mut shell = String::new();
        for (command, state) in wanted {
            writeln!(shell, "kill -{} {}", if state == "T" { "STOP" } else { "CONT" }, self.programs[command])?;
        }
        self.run(&["sh", "-c", &shell])?;
        Ok(())
    }

    /// The command line of a stand-in: a script of the program's name, which the kernel gives that short name, and which waits.
    fn stand_in(&self, command: &str) -> Result<String> {
        let (comm, line) = command.split_once(' ').context("a short name and a command line")?;
        let script = self.path(&format!("programs/{comm}"));
        if !script.exists() {
            fs::write(&script, format!("#!/bin/sh\nread _ < {}\n", text(&self.path("programs/hold"))?))?;
            fs::set_permissions(&script, fs::Permissions::from_mode(0o755))?;
        }
        let arguments = line.split_once(' ').map_or("", |(_, arguments)| arguments);
        Ok(format!("{} {arguments}", script.display()))
    }

    /// Its control plane goes, and whoever serves takes its place: `kubelet.conf` is written for TLS with this authority.
    pub(super) fn over_tls(&mut self, authority: &str) -> Result<SocketAddr> {
        self.master = Ports::default();
        fs::write(self.path("etc/kubernetes/ca.crt"), authority)?;
        let mut config: serde_json::Value = serde_json::from_str(&at_master(KUBELETS_API))?;
        let server = format!("https://{MASTER}:{KUBELETS_API}");
        config["clusters"][0]["cluster"] = serde_json::json!({"server": server, "certificate-authority": "ca.crt"});
        fs::write(self.path("etc/kubernetes/kubelet.conf"), config.to_string())?;
        Ok(SocketAddr::new(MASTER.parse()?, KUBELETS_API))
    }

    /// Runs this where the other ends of its cables are.
    pub(super) fn far<T: Send>(&self, work: impl Future<Output = T> + Send) -> T {
        self.far.run(|| self.tokio.block_on(work))
    }

    /// The runtime's fake, for pods that come and go.
    pub fn containerd(&self) -> &ContainerRuntime {
        &self.containerd
    }

    /// The place of a file of its root.
    pub fn path(&self, inside: &str) -> PathBuf {
        self.root.path().join(inside)
    }

    /// Runs a command on it.
    pub fn run(&self, argv: &[&str]) -> Result<String> {
        self.host.read(argv)
    }

    /// Runs a shell command on it with this on standard input.
    pub fn feed(&self, command: &str, input: &str) -> Result<()> {
        let file = tempfile::Builder::new().tempfile_in(self.path("logs"))?;
        fs::write(file.path(), input)?;
        self.run(&["sh", "-c", &format!("({command}) < {}", file.path().display())])?;
        Ok(())
    }

    pub(super) fn batch(&self, commands: &str) -> Result<()> {
        self.feed("ip -batch -", commands)
    }
}

/// A kubeconfig for the control plane at this port.
fn at_master(port: u16) -> String {
    kubeconfig(&format!("{MASTER}:{port}"))
}

/// A kubeconfig without TLS: what is behind the port is not the point here, that it answers is.
pub fn kubeconfig(server: &str) -> String {
    serde_json::json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "x",
        "contexts": [{"name": "x", "context": {"cluster": "x", "user": "x"}}],
        "clusters": [{"name": "x", "cluster": {"server": format!("http://{server}")}}],
        "users": [{"name": "x", "user": {"token": "none"}}],
    })
    .to_string()
}

/// Makes a directory hold these files. What is right already is left alone.
fn sync(directory: &Path, files: &BTreeMap<&str, String>, mode: u32) -> Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if !entry.file_name().to_str().is_some_and(|name| files.contains_key(name)) {
            fs::remove_file(entry.path())?;
        }
    }
    for (name, text) in files {
        let path = directory.join(name);
        if fs::read_to_string(&path).ok().as_ref() != Some(text) {
            fs::write(&path, text)?;
            fs::set_permissions(&path, fs::Permissions::from_mode(mode))?;
        }
    }
    Ok(())
}

pub(super) fn text(path: &Path) -> Result<&str> {
    path.to_str().context("a path in UTF-8")
}
