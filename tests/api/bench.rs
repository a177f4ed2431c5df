//! The control planes that all tests here share, with `deploy/` applied, and the program under test beside it.

use std::fs;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, TryLockError};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::objects::node;
pub(crate) use crate::objects::{Finding, THEN, TYPES, condition, condition_of, foreign, stale, told};
use crate::support::control_plane::{Bound, ControlPlane, Parts, URL};
use crate::support::workspace::Places;
use crate::support::{parts, shell, wait};

/// The agents' user.
pub(crate) const AGENT: &str = "system:serviceaccount:nodevitals:nodevitals-agent";
/// The aggregators' user.
pub(crate) const AGGREGATOR: &str = "system:serviceaccount:nodevitals:nodevitals-aggregator";
/// For what takes a moment, on a machine that is busy with something else.
pub(crate) const SOON: Duration = Duration::from_secs(30);

/// Control planes that tests use in turns, each started by the first that finds no other free.
static SHARED: [Mutex<Option<Shared>>; Places::ALONE.count] = [const { Mutex::new(None) }; Places::ALONE.count];

struct Shared {
    control_plane: ControlPlane,
    /// The administrator's token.
    admin: String,
    started: AtomicU32,
}

impl Shared {
    fn start() -> Result<Self> {
        let control_plane = ControlPlane::start(Parts::ApiOnly)?;
        control_plane.apply(&rendered()?)?;
        // No controller counts the agents here, and one that knows of thousands would wait for its turn.
        let set = ["patch", "daemonset", "nodevitals-agent", "--namespace", "nodevitals", "--subresource", "status"];
        let counted = ["--type", "merge", "--patch", r#"{"status": {"desiredNumberScheduled": 3}}"#];
        control_plane.kubectl(&[&set[..], &counted].concat())?;
        control_plane.kubectl(&["create", "serviceaccount", "tester", "--namespace", "kube-system"])?;
        let rights = ["create", "clusterrolebinding", "tester", "--clusterrole=cluster-admin"];
        control_plane.kubectl(&[&rights[..], &["--serviceaccount=kube-system:tester"]].concat())?;
        let admin = control_plane.service_account_token("kube-system", "tester", Bound::Nothing)?;
        // A node's root that is not this machine's, so that this machine's own files and runtimes are no part of it.
        let root = control_plane.workspace().directory().join("root");
        for directory in ["proc", "etc", "run", "var/log"] {
            fs::create_dir_all(root.join(directory))?;
        }
        let proc = root.join("proc");
        control_plane.host().read(&[Path::new("mount"), "--rbind".as_ref(), "/proc".as_ref(), proc.as_ref()])?;
        Ok(Self { control_plane, admin, started: AtomicU32::new(0) })
    }
}

/// What `kubectl apply -k deploy` applies.
pub(crate) fn rendered() -> Result<String> {
    let deploy = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy");
    shell::read(Command::new(parts::program("kubectl")?).args(["kustomize", deploy]))
}

/// The control plane, for one test at a time, without any Node or Pod.
pub(crate) struct Bench {
    /// It has been started.
    shared: MutexGuard<'static, Option<Shared>>,
}

/// A control plane that no test has, as a test that failed may have left it.
fn free(one: &'static Mutex<Option<Shared>>) -> Option<MutexGuard<'static, Option<Shared>>> {
    match one.try_lock() {
        Ok(free) => Some(free),
        Err(TryLockError::Poisoned(left)) => Some(left.into_inner()),
        Err(TryLockError::WouldBlock) => None,
    }
}

impl Deref for Bench {
    type Target = ControlPlane;

    fn deref(&self) -> &ControlPlane {
        &self.shared().control_plane
    }
}

/// An answer of the API server.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) code: u16,
    pub(crate) body: Value,
}

impl Bench {
    /// Waits until other tests leave a control plane free.
    pub(crate) fn take() -> Result<Self> {
        let mut shared = loop {
            match SHARED.iter().find_map(free) {
                Some(shared) => break shared,
                None => sleep(Duration::from_millis(100)),
            }
        };
        if shared.is_none() {
            *shared = Some(Shared::start()?);
        }
        // A test that failed has left nothing that is not removed here.
        let bench = Self { shared };
        for pod in bench.list("/api/v1/pods")? {
            let text = |key: &str| pod["metadata"][key].as_str().context("a name");
            bench.delete_pod_in(text("namespace")?, text("name")?)?;
        }
        bench.admin("DELETE /api/v1/nodes", &Value::Null)?;
        bench.exec_in_ns(&["nft", "flush", "ruleset"])?;
        let leases = "/apis/coordination.k8s.io/v1/namespaces/nodevitals/leases";
        bench.admin(&format!("DELETE {leases}"), &Value::Null)?;
        let memory = "/api/v1/namespaces/nodevitals/configmaps/nodevitals-aggregator";
        bench.admin(&format!("PATCH merge {memory}"), &json!({"data": null}))?;
        Ok(bench)
    }

    fn shared(&self) -> &Shared {
        self.shared.as_ref().expect("taken is started")
    }

    /// Sends `METHOD [KIND OF BODY] PATH`; the kinds are `plain`, `strategic`, `merge`, `json` and `apply`.
    pub(crate) fn send(&self, token: &str, request: &str, body: &Value) -> Result<Answer> {
        let (method, rest) = request.split_once(' ').context("a method")?;
        let (kind, path) = rest.split_once(' ').unwrap_or(("plain", rest));
        let kind = match kind {
            "strategic" => "application/strategic-merge-patch+json",
            "merge" => "application/merge-patch+json",
            "json" => "application/json-patch+json",
            "apply" => "application/apply-patch+yaml",
            _ => "application/json",
        };
        let mut curl = self.command_in("curl");
        curl.args(["--silent", "--show-error", "--max-time", "30", "--write-out", "\n%{http_code}", "--cacert"])
            .arg(self.ca_path())
            .args(["--request", method, "--header", &format!("Authorization: Bearer {token}")]);
        if !body.is_null() {
            curl.args(["--header", &format!("Content-Type: {kind}"), "--data-binary", "@-"]);
        }
        curl.arg(format!("{URL}{path}"));
        let text =
            if body.is_null() { shell::read(&mut curl) } else { shell::read_with_input(&mut curl, &body.to_string()) }?;
        let (body, code) = text.rsplit_once('\n').context("a status")?;
        Ok(Answer { code: code.parse()?, body: serde_json::from_str(body).unwrap_or_else(|_| body.into()) })
    }

    /// The same as the administrator; it must succeed.
    pub(crate) fn admin(&self, request: &str, body: &Value) -> Result<Value> {
        let answer = self.send(&self.shared().admin, request, body)?;
        ensure!(answer.code < 300, "{request}: {} {}", answer.code, answer.body);
        Ok(answer.body)
    }

    /// The objects in a list.
    pub(crate) fn list(&self, path: &str) -> Result<Vec<Value>> {
        let list = self.admin(&format!("GET {path}"), &Value::Null)?;
        Ok(list["items"].as_array().cloned().unwrap_or_default())
    }

    /// The Node of this name.
    pub(crate) fn node(&self, name: &str) -> Result<Value> {
        self.admin(&format!("GET /api/v1/nodes/{name}"), &Value::Null)
    }

    /// Adds a Node as a kubelet would, with these labels.
    pub(crate) fn add_node(&self, name: &str, labels: &Value) -> Result<()> {
        self.admin("POST /api/v1/nodes", &node(name, labels))?;
        Ok(())
    }

    /// Adds the agent's Pod on a node: `agent-NODE`. Nothing runs it.
    pub(crate) fn add_agent_pod(&self, node: &str) -> Result<()> {
        self.add_pod(&format!("agent-{node}"), "agent", node)
    }

    /// Adds a Pod of a component; nothing runs it.
    pub(crate) fn add_pod(&self, name: &str, component: &str, node: &str) -> Result<()> {
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "namespace": "nodevitals", "labels": {
                "app.kubernetes.io/name": "nodevitals", "app.kubernetes.io/component": component,
            }},
            "spec": {
                "serviceAccountName": format!("nodevitals-{component}"), "nodeName": node,
                "containers": [{"name": "c", "image": "x"}],
            },
        });
        self.admin("POST /api/v1/namespaces/nodevitals/pods", &pod)?;
        Ok(())
    }

    /// Says this on a Node, as its agent would.
    pub(crate) fn tell(&self, node: &str, finding: Option<Finding>, since: &str) -> Result<()> {
        self.admin(&format!("PATCH strategic /api/v1/nodes/{node}/status"), &told(finding, since)).map(drop)
    }

    /// Adds a worker with these labels on which an agent speaks and has found nothing.
    pub(crate) fn add_worker(&self, name: &str, labels: &Value) -> Result<()> {
        self.add_node(name, labels)?;
        self.add_agent_pod(name)?;
        self.set_ready(&format!("agent-{name}"), true)?;
        self.tell(name, None, &now())
    }

    /// Adds a Pod of calico-node, which was Ready, or not, for a long time; nothing runs it.
    pub(crate) fn add_calico_node(&self, pod: &str, namespace: &str, node: &str, ready: bool) -> Result<()> {
        let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "calico-node", "namespace": namespace}});
        self.apply(&account.to_string())?;
        let owner = json!([{"apiVersion": "apps/v1", "kind": "DaemonSet", "name": "calico-node", "uid": "d", "controller": true}]);
        let body = json!({"apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": pod, "labels": {"k8s-app": "calico-node"}, "ownerReferences": owner},
            "spec": {"nodeName": node, "serviceAccountName": "calico-node", "terminationGracePeriodSeconds": 0,
                "containers": [{"name": "calico-node", "image": "quay.io/calico/node:v3.28.1"}]}});
        self.admin(&format!("POST /api/v1/namespaces/{namespace}/pods"), &body)?;
        self.calico_node_is(pod, namespace, ready)
    }

    /// Says whether it has been Ready for a long time.
    pub(crate) fn calico_node_is(&self, pod: &str, namespace: &str, ready: bool) -> Result<()> {
        let ready = if ready { "True" } else { "False" };
        let condition = json!({"type": "Ready", "status": ready, "lastTransitionTime": "2026-11-01T10:00:00Z"});
        let request = format!("PATCH strategic /api/v1/namespaces/{namespace}/pods/{pod}/status");
        self.admin(&request, &json!({"status": {"phase": "Running", "conditions": [condition]}})).map(drop)
    }

    /// Serves a kind of Calico's.
    pub(crate) fn add_calico_kind(&self, plural: &str, kind: &str) -> Result<()> {
        let definition = json!({
            "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
            "metadata": {"name": format!("{plural}.crd.projectcalico.org")},
            "spec": {
                "group": "crd.projectcalico.org", "scope": "Cluster",
                "names": {"plural": plural, "singular": kind.to_lowercase(), "kind": kind, "listKind": format!("{kind}List")},
                "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema":
                    {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}}],
            },
        });
        self.apply(&definition.to_string())?;
        soon("the kind is served", || self.list(&format!("/apis/crd.projectcalico.org/v1/{plural}")));
        Ok(())
    }

    /// Says whether a Pod is Ready, as its kubelet would.
    pub(crate) fn set_ready(&self, pod: &str, ready: bool) -> Result<()> {
        let ready = if ready { "True" } else { "False" };
        let condition = json!({"type": "Ready", "status": ready, "lastTransitionTime": now()});
        let request = format!("PATCH strategic /api/v1/namespaces/nodevitals/pods/{pod}/status");
        self.admin(&request, &json!({"status": {"conditions": [condition]}}))?;
        Ok(())
    }

    fn delete_pod_in(&self, namespace: &str, pod: &str) -> Result<()> {
        let at_once = json!({"apiVersion": "v1", "kind": "DeleteOptions", "gracePeriodSeconds": 0});
        self.admin(&format!("DELETE plain /api/v1/namespaces/{namespace}/pods/{pod}"), &at_once)?;
        Ok(())
    }

    /// The token that the kubelet gives to a Pod of this component.
    pub(crate) fn token(&self, component: &str, pod: &str) -> Result<String> {
        self.service_account_token("nodevitals", &format!("nodevitals-{component}"), Bound::Pod(pod))
    }

    /// A kubeconfig with that token.
    pub(crate) fn kubeconfig_of(&self, component: &str, pod: &str) -> Result<PathBuf> {
        let shared =
            self.service_account_kubeconfig("nodevitals", &format!("nodevitals-{component}"), Bound::Pod(pod))?;
        let own = shared.with_file_name(format!("{pod}.kubeconfig"));
        fs::rename(shared, &own)?;
        Ok(own)
    }

    /// Starts the agent for a node, with the token of this Pod.
    pub(crate) fn agent(&self, node: &str, pod: &str, more: &[&str]) -> Result<Running<'_>> {
        let kubeconfig = self.kubeconfig_of("agent", pod)?;
        self.agent_with(node, &[&["--kubeconfig", path(&kubeconfig)?], more].concat())
    }

    /// The same with a kubeconfig among the arguments.
    pub(crate) fn agent_with(&self, node: &str, more: &[&str]) -> Result<Running<'_>> {
        let root = self.workspace().directory().join("root");
        let arguments = ["agent", "--node-name", node, "--host-root", path(&root)?];
        self.start(&[&arguments[..], more].concat())
    }

    /// Starts the agent of a node whose files are below this root, started by these words.
    pub(crate) fn agent_at(&self, by: &[&str], root: &Path, node: &str, more: &[&str]) -> Result<Running<'_>> {
        let kubeconfig = self.kubeconfig_of("agent", &format!("agent-{node}"))?;
        let arguments = ["agent", "--node-name", node, "--host-root", path(root)?, "--kubeconfig", path(&kubeconfig)?];
        self.start_by(by, &[&arguments[..], more].concat())
    }

    /// A configuration file of this name and text.
    pub(crate) fn config(&self, name: &str, text: &str) -> Result<String> {
        let file = self.workspace().directory().join(format!("{name}.yaml"));
        fs::write(&file, text)?;
        path(&file).map(str::to_owned)
    }

    /// Starts an aggregator by this name.
    pub(crate) fn aggregator(&self, name: &str) -> Result<Running<'_>> {
        self.aggregator_with(name, &[])
    }

    /// The same with further arguments.
    pub(crate) fn aggregator_with(&self, name: &str, more: &[&str]) -> Result<Running<'_>> {
        let kubeconfig = self.kubeconfig_of("aggregator", name)?;
        self.start(&[&["aggregator", "--identity", name, "--kubeconfig", path(&kubeconfig)?][..], more].concat())
    }

    /// Starts the program; it listens on a port of its own.
    fn start(&self, arguments: &[&str]) -> Result<Running<'_>> {
        self.start_by(&[], arguments)
    }

    /// The same, started by these words.
    pub(crate) fn start_by(&self, by: &[&str], arguments: &[&str]) -> Result<Running<'_>> {
        let number = self.shared().started.fetch_add(1, Ordering::Relaxed);
        let port = 10_600 + number;
        let name = format!("{}-{number}", arguments[0]);
        let program = program();
        let listen = format!("0.0.0.0:{port}");
        self.host().spawn(&name, &[by, &[path(&program)?], arguments, &["--listen", &listen]].concat())?;
        Ok(Running { bench: self, name, port })
    }

    /// Runs the program to its end.
    pub(crate) fn nodevitals(&self, arguments: &[&str]) -> Result<Output> {
        Ok(self.command_in(program()).args(arguments).output()?)
    }

    /// What this user wrote on this Node since the start, oldest first.
    pub(crate) fn writes_on(&self, node: &str, user: &str) -> Result<Vec<Value>> {
        let mut writes = self.writes_by(user)?;
        writes.retain(|write| write["objectRef"]["resource"] == "nodes" && write["objectRef"]["name"] == node);
        Ok(writes)
    }
}

/// A running agent or aggregator.
pub(crate) struct Running<'a> {
    bench: &'a Bench,
    name: String,
    pub(crate) port: u32,
}

impl Running<'_> {
    /// A page that must be there.
    pub(crate) fn page(&self, page: &str) -> Result<String> {
        let url = format!("http://127.0.0.1:{}{page}", self.port);
        shell::read(self.bench.command_in("curl").args([
            "--silent",
            "--show-error",
            "--fail-with-body",
            "--max-time",
            "10",
            &url,
        ]))
    }

    /// The lines of its log.
    pub(crate) fn log(&self) -> Result<Vec<Value>> {
        let text = fs::read_to_string(self.bench.host().log(&self.name))?;
        text.lines().map(|line| serde_json::from_str(line).with_context(|| format!("not JSON: {line}"))).collect()
    }

    /// The first line of its log with this text.
    pub(crate) fn said(&self, text: &str) -> Result<Value> {
        let log = self.log()?;
        let line = log.iter().find(|line| line.to_string().contains(text)).cloned();
        line.with_context(|| format!("{} has not said {text:?}: {log:#?}", self.name))
    }

    /// An error unless it runs.
    pub(crate) fn lives(&self) -> Result<()> {
        self.bench.host().pid(&self.name).map(|_| ())
    }

    pub(crate) fn signal(&self, signal: Signal) -> Result<()> {
        self.bench.host().signal(&self.name, signal)
    }

    /// Ends it as a kubelet does.
    pub(crate) fn end(&self) -> Result<()> {
        self.bench.host().terminate(&self.name)
    }

    /// Passes its metrics to promtool.
    pub(crate) fn check_metrics(&self) -> Result<String> {
        let metrics = self.page("/metrics")?;
        shell::read_with_input(Command::new("promtool").args(["check", "metrics"]), &metrics)
            .with_context(|| metrics.clone())?;
        Ok(metrics)
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.bench.host().kill(&self.name);
    }
}

/// Waits until `look` answers, for as long as things take on a busy machine.
#[track_caller]
pub(crate) fn soon<T>(what: &str, look: impl FnMut() -> Result<T>) -> T {
    wait::eventually(what, SOON, look)
}

/// The time as Kubernetes writes it.
pub(crate) fn now() -> String {
    jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// The program under test: the release binary when the test script built one.
pub(crate) fn program() -> PathBuf {
    std::env::var_os("NODEVITALS_BIN").map_or_else(|| PathBuf::from(env!("CARGO_BIN_EXE_nodevitals")), PathBuf::from)
}

fn path(path: &Path) -> Result<&str> {
    path.to_str().context("a path in UTF-8")
}
