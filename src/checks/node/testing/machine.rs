//! The machine, the runtime and the kubelet of a healthy worker, and how they break.

use super::*;

/// A valid configuration file with one plugin.
pub(in crate::checks::node) fn cni_file(name: &str, plugin: &str) -> CniFile {
    let plugins = vec![CniPlugin { kind: plugin.into(), ..CniPlugin::default() }];
    CniFile {
        name: name.into(),
        modified: None,
        content: Ok(CniConfig { name: "net".into(), cni_version: "1.0.0".into(), plugins }),
    }
}

pub(super) fn runtime(now: Timestamp) -> Runtime {
    let condition = |kind: &str| RuntimeCondition {
        kind: kind.into(),
        status: true,
        reason: String::new(),
        message: String::new(),
    };
    Runtime {
        socket: Seen::Yes("/run/containerd/containerd.sock".into()),
        status: Seen::Yes(RuntimeStatus {
            name: "containerd".into(),
            version: "1.6.20".into(),
            conditions: vec![condition("RuntimeReady"), condition("NetworkReady")],
            cni_dirs: None,
            cni_loopback: true,
            cni_load: None,
        }),
        sandboxes: Seen::Yes(vec![Sandbox {
            id: "sandbox-1".into(),
            namespace: "default".into(),
            name: "web".into(),
            created_at: i64::try_from(now.as_nanosecond()).expect("this century") - 600_000_000_000,
            host_network: Some(false),
            addresses: vec!["10.244.0.7".parse().expect("an address")],
        }]),
        image_filesystems: Seen::Yes(vec!["/var/lib/containerd/io.containerd.snapshotter.v1.overlayfs".into()]),
        latency: Vec::new(),
        hung: None,
        failures: SandboxFailures::default(),
        static_pods: Vec::new(),
    }
}

pub(super) fn root_filesystem() -> Filesystem {
    let (bytes, inodes) = (100 << 30, 1_000_000);
    Filesystem {
        mount_point: "/".into(),
        source: "/dev/vda1".into(),
        device: Some("vda1".into()),
        kind: "ext4".into(),
        roles: vec![Role::Root, Role::Nodefs, Role::Logs],
        read_only: false,
        meant_read_only: false,
        space: Seen::Yes(Space { bytes, bytes_available: bytes / 2, inodes, inodes_available: inodes / 2 }),
        bytes_per_second: Some(0.0),
        inodes_per_second: Some(0.0),
        biggest: vec![],
        most_files: vec![],
    }
}

pub(super) fn memory() -> Memory {
    let total = 16 << 30;
    Memory {
        total,
        available: total / 2,
        kubelet_available: total / 2,
        stall: Some(Stall::default()),
        bytes_per_second: None,
        pods: None,
        kills: Seen::Yes(vec![]),
    }
}

pub(super) fn strain() -> Strain {
    Strain {
        io: Seen::Yes(Stall::default()),
        cpu: Seen::Yes(Stall::default()),
        blocked: None,
        tasks: Seen::Yes(Tasks { count: 300, limit: 32_768, per_second: None, pods: None }),
        files: Seen::Yes(Files { allocated: 2_000, limit: 1_000_000, per_second: None }),
        inotify: Seen::Yes(InotifyRoom { instances: 8, tried: 8, limit: 128, watch: Some(true), watches: 8_192 }),
        pods: Seen::Absent,
        file_tables: vec![],
        inotify_users: None,
        cpus: None,
    }
}

/// A walk over the cgroups of two pods, one of which the runtime knows.
pub(in crate::checks::node) fn pods() -> Seen<PodScan> {
    let known = PodCgroup { uid: "u-1".into(), containers: vec!["sandbox-1".into()] };
    let other = PodCgroup { uid: "u-2".into(), containers: vec![] };
    Seen::Yes(PodScan {
        pods: 2,
        by_memory: vec![(known.clone(), 1 << 30), (other.clone(), 2 << 20)],
        by_tasks: vec![(other, 900), (known.clone(), 7)],
        by_io: vec![(known.clone(), 12 << 20)],
        by_cpu: vec![(known, 2500)],
        ..PodScan::default()
    })
}

pub(super) fn kubelet() -> Kubelet {
    Kubelet {
        config_path: Some("/var/lib/kubelet/config.yaml".into()),
        kubeconfig_path: Some("/etc/kubernetes/kubelet.conf".into()),
        server: Some("https://10.0.0.9:6443".into()),
        node_name: Some("n1".into()),
        client_certificate: Seen::Absent,
        serving_certificate: Seen::Absent,
        static_pods: "/etc/kubernetes/manifests".into(),
        manifests: Seen::Absent,
        healthz_port: 10248,
        runtime_endpoint: None,
        eviction: EvictionThresholds::default(),
        capacity: CapacitySettings::default(),
        cluster_domain: None,
        config_error: None,
    }
}

impl Node {
    /// Changes what was seen of memory.
    pub(in crate::checks::node) fn memory(self, change: impl FnOnce(&mut Memory)) -> Self {
        self.edit(|now| {
            let Seen::Yes(memory) = &mut now.memory else { panic!("seen") };
            change(memory);
        })
    }

    /// Changes the root file system.
    pub(in crate::checks::node) fn filesystem(self, change: impl FnOnce(&mut Filesystem)) -> Self {
        self.edit(|now| {
            let Seen::Yes(filesystems) = &mut now.filesystems else { panic!("seen") };
            change(&mut filesystems[0]);
        })
    }

    /// The CNI configuration names this plugin alone.
    pub(in crate::checks::node) fn cni_plugin(self, plugin: &str) -> Self {
        self.edit(|now| {
            now.cni.files = Seen::Yes(vec![cni_file("10-net.conflist", plugin)]);
            now.cni.binaries.clear();
        })
    }

    /// A condition of the runtime.
    pub(in crate::checks::node) fn runtime_condition(self, kind: &str, status: bool) -> Self {
        self.edit(|now| {
            let Seen::Yes(runtime) = &mut now.runtime.status else { panic!("seen") };
            runtime.conditions.retain(|condition| condition.kind != kind);
            let (reason, message) = ("TestReason".into(), "test message".into());
            runtime.conditions.push(RuntimeCondition { kind: kind.into(), status, reason, message });
        })
    }

    /// Without this program.
    pub(in crate::checks::node) fn without(self, program: Program) -> Self {
        self.edit(|now| {
            let Seen::Yes(processes) = &mut now.processes else { panic!("seen") };
            processes.found.retain(|process| process.program != program);
        })
    }

    /// The kubelet was started so many seconds ago.
    pub(in crate::checks::node) fn kubelet_started_ago(self, seconds: i64) -> Self {
        self.started_ago(Program::Kubelet, seconds)
    }

    /// containerd was started so many seconds ago.
    pub(in crate::checks::node) fn containerd_started_ago(self, seconds: i64) -> Self {
        self.started_ago(Program::Containerd, seconds)
    }

    /// The Node, read 20 s ago, says this since 250 s; the kubelet wrote it 30 s ago.
    pub(in crate::checks::node) fn says(self, kind: &str, status: &str, reason: &str, message: &str) -> Self {
        self.edit(|now| {
            let ago = |seconds| now.taken_at - SignedDuration::from_secs(seconds);
            let [kind, status, reason, message] = [kind, status, reason, message].map(str::to_owned);
            let (since, heartbeat) = (Some(ago(250)), Some(ago(30)));
            let conditions = vec![KubeletCondition { kind, status, reason, message, since, heartbeat }];
            now.writes = Seen::Yes(Writes {
                server: "https://10.0.0.9:6443/".into(),
                blocked: None,
                cordoned: Some(false),
                registered_at: Some(ago(86_400)),
                said: Some(KubeletSaid { read_at: ago(20), conditions }),
            });
        })
    }

    /// Its words were written so many seconds ago.
    pub(in crate::checks::node) fn heartbeat_ago(self, seconds: i64) -> Self {
        self.words(|said, now| said.conditions[0].heartbeat = Some(now - SignedDuration::from_secs(seconds)))
    }

    /// They were read so many seconds ago.
    pub(in crate::checks::node) fn read_ago(self, seconds: i64) -> Self {
        self.words(|said, now| said.read_at = now - SignedDuration::from_secs(seconds))
    }

    fn words(self, change: impl FnOnce(&mut KubeletSaid, Timestamp)) -> Self {
        self.edit(|now| {
            let Seen::Yes(Writes { said: Some(said), .. }) = &mut now.writes else { panic!("said") };
            change(said, now.taken_at);
        })
    }

    /// The kernel reports this, as if it had this name for what it is about.
    pub(in crate::checks::node) fn kernel_says(self, fault: KernelFault, subject: &str, line: &str) -> Self {
        self.edit(|now| {
            let first_at = now.taken_at;
            let event = KernelEvent { fault, subject: subject.into(), first_at, times: 1, line: line.into() };
            let Seen::Yes(log) = &mut now.kernel_log else { panic!("seen") };
            log.events.push(event);
        })
    }

    /// A program was started so many seconds ago.
    pub(in crate::checks::node) fn started_ago(self, program: Program, seconds: i64) -> Self {
        self.edit(|now| {
            let Seen::Yes(processes) = &mut now.processes else { panic!("seen") };
            let process = processes.found.iter_mut().find(|process| process.program == program).expect("running");
            process.started_at = now.taken_at - SignedDuration::from_secs(seconds);
        })
    }
}
