//! etcd, kube-apiserver, and the controllers and the scheduler if asked for, in a network of their own.

use std::{
    ffi::{OsStr, OsString},
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::{
    host::{Host, tail},
    parts,
    pki::{Authority, Certificate},
    shell,
    wait::within,
    workspace::{Places, Workspace},
};

/// The API server's address on the bridge that the nodes are plugged into.
pub const ADDRESS: &str = "10.77.0.1";
/// Where clients find the API server.
pub const URL: &str = "https://10.77.0.1:6443";
/// The ClusterIPs.
pub const SERVICES: &str = "10.96.0.0/16";
/// What the nodes' pod ranges are cut from.
pub const PODS: &str = "10.244.0.0/16";

/// Every write, with its user; those to nodes with what was written.
const AUDIT_POLICY: &str = r#"{
  "apiVersion": "audit.k8s.io/v1", "kind": "Policy", "omitStages": ["RequestReceived"],
  "rules": [
    {"level": "Request", "verbs": ["create", "update", "patch", "delete", "deletecollection"],
     "resources": [{"group": "", "resources": ["nodes", "nodes/status"]}]},
    {"level": "Metadata", "verbs": ["create", "update", "patch", "delete", "deletecollection"]},
    {"level": "None"}
  ]
}"#;

/// The bridge is there without nodes too: it holds the API server's address.
const SETUP: &str = "
ip link add br0 type bridge
ip address add 10.77.0.1/24 dev br0
ip link set br0 up
echo 1 > /proc/sys/net/ipv4/ip_forward
";

/// What runs besides etcd and the API server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parts {
    /// Nothing: objects stay as they are written. Service accounts have to be created by hand.
    ApiOnly,
    /// kube-controller-manager and kube-scheduler.
    Controllers,
}

/// Whose life a token ends with, and whose name it carries.
#[derive(Clone, Copy, Debug)]
pub enum Bound<'a> {
    Nothing,
    Pod(&'a str),
    Node(&'a str),
}

/// A Kubernetes API that only the test reaches.
pub struct ControlPlane {
    // Dropped in this order: processes first, then their files.
    host: Host,
    authority: Authority,
    admin: Certificate,
    /// By which service accounts' tokens are signed and verified.
    keys: (PathBuf, PathBuf),
    workspace: Workspace,
}

impl ControlPlane {
    /// Waits for a place on this machine, starts one there, and waits until it answers.
    pub fn start(parts: Parts) -> Result<Self> {
        let workspace = Workspace::new(match parts {
            Parts::ApiOnly => Places::ALONE,
            Parts::Controllers => Places::WITH_NODES,
        })?;
        let directory = workspace.directory();
        let host = Host::start("cp", SETUP, &[], workspace.logs())?;
        start_etcd(&host, directory)?;

        let authority = Authority::new(directory.join("pki"))?;
        let admin = authority.issue("admin", "admin", &["system:masters"], &[])?;
        let (signing_key, verifying_key) = authority.key_pair("service-accounts")?;
        start_api_server(&host, directory, &authority, &signing_key, &verifying_key)?;

        let control_plane = Self { host, authority, admin, keys: (signing_key, verifying_key), workspace };
        control_plane.wait_until_ready()?;
        if parts == Parts::Controllers {
            control_plane.start_controllers(&control_plane.keys.0)?;
        }
        Ok(control_plane)
    }

    fn wait_until_ready(&self) -> Result<()> {
        within(Duration::from_secs(90), || self.raw("/readyz"))
            .with_context(|| format!("the API server is not ready: {}", tail(&self.host.log("kube-apiserver"))))?;
        Ok(())
    }

    /// Kills the API server, lets `meanwhile` happen, and starts it anew with an empty memory of what changed before.
    pub fn restart_api_server(&self, meanwhile: impl FnOnce() -> Result<()>) -> Result<()> {
        self.host.kill("kube-apiserver")?;
        meanwhile()?;
        let (signing_key, verifying_key) = &self.keys;
        start_api_server(&self.host, self.workspace.directory(), &self.authority, signing_key, verifying_key)?;
        self.wait_until_ready()
    }

    /// Lets etcd forget all that objects were before they became what they are.
    pub fn compact(&self) -> Result<()> {
        // Any key: each answer says the revision.
        let range = self.etcd("range", &json!({"key": "AA=="}))?;
        let revision = range["header"]["revision"].as_str().context("a revision")?;
        self.etcd("compaction", &json!({"revision": revision, "physical": true}))?;
        Ok(())
    }

    /// Stores an object as if it had been made so long ago, in seconds. No client of the API server can say when something
    /// was made, so that this is told to etcd; who watches sees it change. `stored` is its place there, such as `minions/n1`.
    pub fn age(&self, path: &str, stored: &str, seconds: i64) -> Result<()> {
        let mut object = self.get(path)?;
        let made = jiff::Timestamp::now() - jiff::SignedDuration::from_secs(seconds);
        object["metadata"]["creationTimestamp"] = made.strftime("%Y-%m-%dT%H:%M:%SZ").to_string().into();
        // What the API server reads from where it is stored.
        object["metadata"].as_object_mut().context("metadata")?.remove("resourceVersion");
        let encoded = |text: &str| shell::read_with_input(Command::new("base64").arg("--wrap=0"), text);
        let (key, value) = (encoded(&format!("/registry/{stored}"))?, encoded(&object.to_string())?);
        self.etcd("put", &json!({"key": key, "value": value})).map(drop)
    }

    /// Asks etcd.
    fn etcd(&self, what: &str, body: &Value) -> Result<Value> {
        let url = format!("http://127.0.0.1:2379/v3/kv/{what}");
        let mut curl = self.command_in("curl");
        curl.args(["-sS", "--fail-with-body", "--max-time", "10", "--data-binary", "@-", &url]);
        Ok(serde_json::from_str(&shell::read_with_input(&mut curl, &body.to_string())?)?)
    }

    fn start_controllers(&self, signing_key: &Path) -> Result<()> {
        let configuration = |user: &str| self.kubeconfig(user, &[]).map(|file| flag("kubeconfig", &file));
        self.host.spawn(
            "kube-controller-manager",
            &[
                parts::program("kube-controller-manager")?.into(),
                configuration("system:kube-controller-manager")?,
                flag("service-account-private-key-file", signing_key),
                flag("root-ca-file", self.authority.certificate()),
                flag("cluster-cidr", PODS),
                flag("service-cluster-ip-range", SERVICES),
                "--allocate-node-cidrs=true".into(),
                "--use-service-account-credentials=true".into(),
                "--leader-elect=false".into(),
                "--node-monitor-grace-period=20s".into(),
                "--kube-api-qps=100".into(),
                "--kube-api-burst=200".into(),
            ],
        )?;
        self.host.spawn(
            "kube-scheduler",
            &[
                parts::program("kube-scheduler")?.into(),
                configuration("system:kube-scheduler")?,
                "--leader-elect=false".into(),
            ],
        )
    }

    /// The namespaces that it runs in, with `etcd`, `kube-apiserver`, `kube-controller-manager` and `kube-scheduler`:
    /// stop or kill them there.
    pub fn host(&self) -> &Host {
        &self.host
    }

    pub fn workspace(&self) -> &Workspace {
        &self.workspace
    }

    pub(super) fn authority(&self) -> &Authority {
        &self.authority
    }

    pub fn ca_path(&self) -> &Path {
        self.authority.certificate()
    }

    /// A command that reaches the API. It ends with the thread that starts it.
    pub fn command_in(&self, program: impl AsRef<OsStr>) -> Command {
        self.host.command_in_network(program)
    }

    /// Runs a command that reaches the API and must succeed, and returns what it printed.
    pub fn exec_in_ns(&self, argv: &[&str]) -> Result<String> {
        self.host.read_in_network(argv)
    }

    /// kubectl as the administrator.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        shell::read(&mut self.kubectl_command(arguments)?)
    }

    /// Applies a manifest, YAML or JSON.
    pub fn apply(&self, manifest: &str) -> Result<String> {
        let mut kubectl = self.kubectl_command(&["apply", "-f", "-"])?;
        shell::read_with_input(&mut kubectl, manifest)
    }

    fn kubectl_command(&self, arguments: &[&str]) -> Result<Command> {
        let mut kubectl = self.command_in(parts::program("kubectl")?);
        kubectl.arg("--kubeconfig").arg(self.admin_kubeconfig()?).args(arguments);
        Ok(kubectl)
    }

    /// What the API answers to a GET by the administrator; quicker than kubectl, so fit for polling.
    pub fn raw(&self, path: &str) -> Result<String> {
        let mut curl = self.command_in("curl");
        curl.args(["--silent", "--show-error", "--fail-with-body", "--max-time", "10", "--cacert"])
            .arg(self.ca_path())
            .arg("--cert")
            .arg(&self.admin.certificate)
            .arg("--key")
            .arg(&self.admin.key)
            .arg(format!("{URL}{path}"));
        shell::read(&mut curl)
    }

    /// [`ControlPlane::raw`] as JSON.
    pub fn get(&self, path: &str) -> Result<Value> {
        Ok(serde_json::from_str(&self.raw(path)?)?)
    }

    pub fn admin_kubeconfig(&self) -> Result<PathBuf> {
        self.write_kubeconfig("admin", &client(&self.admin))
    }

    /// A kubeconfig for a user known by a certificate.
    pub fn kubeconfig(&self, user: &str, groups: &[&str]) -> Result<PathBuf> {
        let name = user.replace([':', '/'], "-");
        let issued = self.authority.issue(&name, user, groups, &[])?;
        self.write_kubeconfig(&name, &client(&issued))
    }

    /// A kubeconfig for a service account.
    pub fn service_account_kubeconfig(&self, namespace: &str, name: &str, bound: Bound) -> Result<PathBuf> {
        let token = self.service_account_token(namespace, name, bound)?;
        self.write_kubeconfig(&format!("{namespace}-{name}"), &json!({"token": token}))
    }

    /// A token as the kubelet would get it for a pod: bound to it, and with the node's name in it.
    pub fn service_account_token(&self, namespace: &str, name: &str, bound: Bound) -> Result<String> {
        let mut arguments = vec!["create", "token", name, "--namespace", namespace];
        let uid;
        if let Some((kind, object)) = match bound {
            Bound::Nothing => None,
            Bound::Pod(pod) => Some(("Pod", pod)),
            Bound::Node(node) => Some(("Node", node)),
        } {
            uid = self.kubectl(&["get", kind, object, "--namespace", namespace, "-o", "jsonpath={.metadata.uid}"])?;
            arguments.extend(["--bound-object-kind", kind, "--bound-object-name", object]);
            arguments.extend(["--bound-object-uid", &uid]);
        }
        Ok(self.kubectl(&arguments)?.trim().to_owned())
    }

    fn write_kubeconfig(&self, name: &str, user: &Value) -> Result<PathBuf> {
        let file = self.workspace.directory().join(format!("{name}.kubeconfig"));
        fs::write(&file, kubeconfig(self.ca_path(), user).to_string())?;
        Ok(file)
    }

    /// Every write since the start, oldest first: `user.username`, `verb`, `objectRef`, `responseStatus.code`, and for
    /// nodes `requestObject`.
    pub fn audit_events(&self) -> Result<Vec<Value>> {
        let log = fs::read_to_string(self.workspace.directory().join("audit.log"))?;
        // The last line may be half written.
        let complete = log.rfind('\n').map_or("", |end| &log[..end]);
        complete.lines().map(|line| Ok(serde_json::from_str(line)?)).collect()
    }

    /// The audited writes of one user.
    pub fn writes_by(&self, user: &str) -> Result<Vec<Value>> {
        let mut events = self.audit_events()?;
        events.retain(|event| event["user"]["username"] == user);
        Ok(events)
    }
}

fn start_etcd(host: &Host, directory: &Path) -> Result<()> {
    host.spawn(
        "etcd",
        &[
            parts::program("etcd")?.into(),
            flag("data-dir", directory.join("etcd")),
            "--listen-client-urls=http://127.0.0.1:2379".into(),
            "--advertise-client-urls=http://127.0.0.1:2379".into(),
            "--listen-peer-urls=http://127.0.0.1:2380".into(),
            "--unsafe-no-fsync".into(),
        ],
    )
}

fn start_api_server(
    host: &Host,
    directory: &Path,
    authority: &Authority,
    signing_key: &Path,
    verifying_key: &Path,
) -> Result<()> {
    let server = authority.issue(
        "apiserver",
        "kube-apiserver",
        &[],
        &[
            &format!("IP:{ADDRESS}"),
            "IP:10.96.0.1",
            "IP:127.0.0.1",
            "DNS:localhost",
            "DNS:kubernetes",
            "DNS:kubernetes.default",
            "DNS:kubernetes.default.svc",
        ],
    )?;
    let to_kubelets = authority.issue("apiserver-kubelet-client", "apiserver", &["system:masters"], &[])?;
    let policy = directory.join("audit-policy.json");
    fs::write(&policy, AUDIT_POLICY)?;
    host.spawn(
        "kube-apiserver",
        &[
            parts::program("kube-apiserver")?.into(),
            flag("advertise-address", ADDRESS),
            flag("service-cluster-ip-range", SERVICES),
            flag("tls-cert-file", server.certificate),
            flag("tls-private-key-file", server.key),
            flag("client-ca-file", authority.certificate()),
            flag("service-account-signing-key-file", signing_key),
            flag("service-account-key-file", verifying_key),
            flag("kubelet-certificate-authority", authority.certificate()),
            flag("kubelet-client-certificate", to_kubelets.certificate),
            flag("kubelet-client-key", to_kubelets.key),
            flag("audit-policy-file", policy),
            flag("audit-log-path", directory.join("audit.log")),
            "--etcd-servers=http://127.0.0.1:2379".into(),
            "--secure-port=6443".into(),
            "--service-account-issuer=https://kubernetes.default.svc".into(),
            "--authorization-mode=Node,RBAC".into(),
            "--enable-admission-plugins=NodeRestriction".into(),
            "--kubelet-preferred-address-types=InternalIP".into(),
            "--allow-privileged=true".into(),
        ],
    )
}

fn flag(name: &str, value: impl AsRef<OsStr>) -> OsString {
    let mut flag = OsString::from(format!("--{name}="));
    flag.push(value);
    flag
}

fn client(certificate: &Certificate) -> Value {
    json!({"client-certificate": certificate.certificate, "client-key": certificate.key})
}

/// A kubeconfig (JSON is YAML too) of one user.
pub(super) fn kubeconfig(authority: &Path, user: &Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "test",
        "clusters": [{"name": "test", "cluster": {"server": URL, "certificate-authority": authority}}],
        "users": [{"name": "test", "user": user}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
    })
}
