//! A worker: containerd, kubelet and kube-proxy with files, network, mounts and processes of their own.

use std::{
    ffi::{OsStr, OsString},
    fs,
    ops::Deref,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::{
    control_plane::{ADDRESS, ControlPlane, PODS, kubeconfig},
    host::Host,
    parts,
    wait::within,
};

pub const SETUP: &str = include_str!("node.sh");
const CONTAINERD: &str = "containerd";
const KUBELET: &str = "kubelet";
const KUBE_PROXY: &str = "kube-proxy";

pub const CONTAINERD_CONFIG: &str = r#"version = 2
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "docker.io/library/pause:test"
  # Without CAP_SYS_RESOURCE runc may not lower a score.
  restrict_oom_score_adj = true
"#;

/// How a node presents itself.
#[derive(Clone, Debug)]
pub struct NodeOptions {
    /// `topology.kubernetes.io/zone`
    pub zone: String,
    /// `node.kubernetes.io/instance-type`
    pub instance_type: String,
    /// More labels, such as a pool's.
    pub labels: Vec<(String, String)>,
}

impl Default for NodeOptions {
    fn default() -> Self {
        Self { zone: "zone-a".into(), instance_type: "test.2x4".into(), labels: Vec::new() }
    }
}

impl NodeOptions {
    pub fn in_zone(zone: &str) -> Self {
        Self { zone: zone.into(), ..Self::default() }
    }

    fn label_flag(&self) -> String {
        let mut labels = vec![
            format!("topology.kubernetes.io/zone={}", self.zone),
            format!("node.kubernetes.io/instance-type={}", self.instance_type),
        ];
        labels.extend(self.labels.iter().map(|(key, value)| format!("{key}={value}")));
        format!("--node-labels={}", labels.join(","))
    }
}

/// One worker of a [`super::cluster::Cluster`]. Its programs are `containerd`, `kubelet` and `kube-proxy`: signal,
/// kill and start them one by one, nothing restarts them. It is a [`Host`], so a test may run its own there too.
pub struct Node {
    name: String,
    address: String,
    directory: PathBuf,
    options: NodeOptions,
    host: Host,
}

impl Deref for Node {
    type Target = Host;

    fn deref(&self) -> &Host {
        &self.host
    }
}

impl Node {
    /// Makes the machine, plugs it into the control plane's bridge and starts its programs.
    pub(super) fn start_on(control_plane: &ControlPlane, name: &str, index: u8, options: NodeOptions) -> Result<Self> {
        let workspace = control_plane.workspace();
        let address = format!("10.77.0.{}", 10 + index);
        let directory = workspace.directory().join(name);
        let cgroup = format!("{}-{name}", workspace.id());
        let environment: [(&str, &OsStr); 3] =
            [("NODE_DIR", directory.as_os_str()), ("NODE_IP", address.as_ref()), ("NODE_CGROUP", cgroup.as_ref())];
        let host = Host::start(name, SETUP, &environment, workspace.logs())?;
        let node = Self { name: name.into(), address, directory, options, host };

        node.plug_into(control_plane)?;
        node.write_files(control_plane, &cgroup)?;
        node.start(CONTAINERD)?;
        within(Duration::from_secs(30), || node.read(&["ctr", "version"])).context("containerd does not answer")?;
        node.import_image(&parts::archive("pause.tar")?)?;
        node.start(KUBELET)?;
        node.start(KUBE_PROXY)?;
        Ok(node)
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its address on the cluster's network.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// A file of the node as the test process sees it, for what is the node's own: `/etc`, `/opt`, `/var/lib` and
    /// `/var/log`.
    pub fn path(&self, inside: &str) -> PathBuf {
        self.directory.join(inside.trim_start_matches('/'))
    }

    /// Starts `containerd`, `kubelet` or `kube-proxy` as at first.
    pub fn start(&self, program: &str) -> Result<()> {
        self.spawn(program, &self.command_line(program)?)
    }

    /// Gives containerd an image from a docker or OCI archive.
    pub fn import_image(&self, archive: &Path) -> Result<()> {
        let import = ["ctr", "--namespace", "k8s.io", "images", "import"].map(OsStr::new);
        self.read(&[&import[..], &[archive.as_os_str()]].concat())?;
        Ok(())
    }

    /// Waits until the API server says that the kubelet says that the node is Ready.
    pub fn wait_until_ready(&self, control_plane: &ControlPlane, deadline: Duration) -> Result<()> {
        within(deadline, || {
            let object = self.object(control_plane)?;
            let ready = condition(&object, "Ready")?;
            ensure!(ready["status"] == "True", "{} is not Ready: {}", self.name, ready["message"]);
            Ok(())
        })
    }

    /// The Node object.
    pub fn object(&self, control_plane: &ControlPlane) -> Result<Value> {
        control_plane.get(&format!("/api/v1/nodes/{}", self.name))
    }

    fn plug_into(&self, control_plane: &ControlPlane) -> Result<()> {
        let cable = format!("veth-{}", self.name);
        let bridge_side = |argv: &[&str]| control_plane.exec_in_ns(argv);
        bridge_side(&[
            "ip",
            "link",
            "add",
            &cable,
            "type",
            "veth",
            "peer",
            "name",
            "eth0",
            "netns",
            &self.init().to_string(),
        ])?;
        bridge_side(&["ip", "link", "set", &cable, "master", "br0", "up"])?;
        self.read(&["ip", "address", "add", &format!("{}/24", self.address), "dev", "eth0"])?;
        self.read(&["ip", "link", "set", "eth0", "up"])?;
        self.read(&["ip", "route", "add", "default", "via", ADDRESS])?;
        Ok(())
    }

    /// Everything where kubeadm and Debian would put it.
    fn write_files(&self, control_plane: &ControlPlane, cgroup: &str) -> Result<()> {
        let (name, address) = (self.name.as_str(), self.address.as_str());
        let pki = control_plane.authority();
        let user = pki.issue(&format!("{name}-client"), &format!("system:node:{name}"), &["system:nodes"], &[])?;
        let serving =
            pki.issue(&format!("{name}-server"), name, &[], &[&format!("IP:{address}"), &format!("DNS:{name}")])?;
        let proxy = pki.issue(&format!("{name}-proxy"), "system:kube-proxy", &[], &[])?;

        fs::copy(pki.certificate(), self.path("/etc/kubernetes/pki/ca.crt"))?;
        concatenate(&[&user.certificate, &user.key], &self.path("/var/lib/kubelet/pki/kubelet-client-current.pem"))?;
        fs::copy(&serving.certificate, self.path("/var/lib/kubelet/pki/kubelet.crt"))?;
        fs::copy(&serving.key, self.path("/var/lib/kubelet/pki/kubelet.key"))?;
        concatenate(&[&proxy.certificate, &proxy.key], &self.path("/var/lib/kube-proxy/client.pem"))?;

        let access = |pem: &str| {
            let user = json!({"client-certificate": pem, "client-key": pem});
            kubeconfig(Path::new("/etc/kubernetes/pki/ca.crt"), &user).to_string()
        };
        fs::write(
            self.path("/etc/kubernetes/kubelet.conf"),
            access("/var/lib/kubelet/pki/kubelet-client-current.pem"),
        )?;
        fs::write(self.path("/var/lib/kube-proxy/kubeconfig.conf"), access("/var/lib/kube-proxy/client.pem"))?;
        fs::write(self.path("/var/lib/kubelet/config.yaml"), kubelet_config(cgroup).to_string())?;
        fs::write(self.path("/etc/containerd/config.toml"), CONTAINERD_CONFIG)?;
        Ok(())
    }

    fn command_line(&self, program: &str) -> Result<Vec<OsString>> {
        let name = format!("--hostname-override={}", self.name);
        let arguments = match program {
            CONTAINERD => return Ok(vec![CONTAINERD.into()]),
            KUBELET => vec![
                "--config=/var/lib/kubelet/config.yaml".into(),
                "--kubeconfig=/etc/kubernetes/kubelet.conf".into(),
                format!("--node-ip={}", self.address),
                name,
                self.options.label_flag(),
                "--v=2".into(),
            ],
            KUBE_PROXY => vec![
                "--kubeconfig=/var/lib/kube-proxy/kubeconfig.conf".into(),
                "--proxy-mode=iptables".into(),
                format!("--cluster-cidr={PODS}"),
                // The limit belongs to the machine's own network namespace.
                "--conntrack-max-per-core=0".into(),
                name,
            ],
            other => anyhow::bail!("{other} is none of containerd, kubelet and kube-proxy"),
        };
        let program = parts::program(program)?.into_os_string();
        Ok([program].into_iter().chain(arguments.into_iter().map(OsString::from)).collect())
    }

    /// The pod range that the controllers gave this node.
    pub(super) fn wait_for_pod_range(&self, control_plane: &ControlPlane) -> Result<String> {
        within(Duration::from_secs(30), || {
            let node = self.object(control_plane)?;
            let range = node["spec"]["podCIDR"].as_str().context("it has no podCIDR")?;
            Ok(range.to_owned())
        })
        .with_context(|| format!("{} has no pod range", self.name))
    }

    /// The CNI configuration for a pod range.
    pub(super) fn write_cni_config(&self, pod_range: &str) -> Result<()> {
        let config = json!({
            "cniVersion": "0.4.0", "name": "k8s-pod-network",
            "plugins": [
                {"type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": false, "hairpinMode": true,
                 "ipam": {"type": "host-local", "ranges": [[{"subnet": pod_range}]],
                          "routes": [{"dst": "0.0.0.0/0"}]}},
                {"type": "portmap", "capabilities": {"portMappings": true}},
            ],
        });
        // As an installer does it, so that nobody reads a half of it.
        let temporary = self.path("/etc/cni/net.d/10-bridge.conflist.tmp");
        fs::write(&temporary, format!("{config:#}\n"))?;
        fs::rename(temporary, self.path("/etc/cni/net.d/10-bridge.conflist"))?;
        Ok(())
    }
}

/// One condition of a Node object.
pub fn condition<'a>(node: &'a Value, kind: &str) -> Result<&'a Value> {
    node["status"]["conditions"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|condition| condition["type"] == kind)
        .with_context(|| format!("no condition {kind}"))
}

/// The configuration of a kubelet whose cgroups are below this one.
pub fn kubelet_config(cgroup: &str) -> Value {
    json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration",
        "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
        "authentication": {
            "x509": {"clientCAFile": "/etc/kubernetes/pki/ca.crt"},
            "webhook": {"enabled": true}, "anonymous": {"enabled": false},
        },
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": "/var/lib/kubelet/pki/kubelet.crt",
        "tlsPrivateKeyFile": "/var/lib/kubelet/pki/kubelet.key",
        "clusterDNS": ["10.96.0.10"], "clusterDomain": "cluster.local", "resolvConf": "/etc/resolv.conf",
        "failSwapOn": false,
        // cgroup v1, shared with the machine.
        "failCgroupV1": false, "cgroupDriver": "cgroupfs", "cgroupRoot": format!("/{cgroup}"),
        "cgroupsPerQOS": true, "enforceNodeAllocatable": [],
        // The disk is the machine's, however full.
        "evictionHard": {"memory.available": "100Mi", "nodefs.available": "2%", "imagefs.available": "2%"},
        "imageGCHighThresholdPercent": 100,
        // Within the controllers' grace period of 20 s even when the machine is busy.
        "nodeLeaseDurationSeconds": 20,
        "nodeStatusUpdateFrequency": "5s", "nodeStatusReportFrequency": "5m",
    })
}

fn concatenate(from: &[&Path], to: &Path) -> Result<()> {
    let parts = from.iter().map(fs::read).collect::<Result<Vec<_>, _>>()?;
    Ok(fs::write(to, parts.concat())?)
}
