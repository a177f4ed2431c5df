//! How a Pod has to be made to run where the agents ran: as their DaemonSet says, or else the aggregator's Deployment.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{Options, STATE_DIR};
use crate::api::{Api, get, said};

/// Where the directory's parent is mounted in the Pod.
const MOUNTED: &str = "/node";
const NOT_THEIR_OWN: &str =
    "is no directory of the agents' own: give an absolute path of two names at least, as /var/lib/nodevitals";

/// What is known of how Pods are made here.
#[derive(Debug)]
pub(super) struct Template {
    /// The Pod of the agents or of the aggregator; nothing where neither is there.
    spec: Value,
    /// The agents' DaemonSet is there, and starts them again.
    pub(super) has_agents: bool,
    image: Result<String, String>,
    directory: String,
    timeout: u16,
}

impl Template {
    /// Asks for it.
    pub(super) async fn find(api: &Api, options: &Options) -> Template {
        let path = format!("/apis/apps/v1/namespaces/{}", options.namespace);
        let mut why = Vec::new();
        let (mut spec, mut has_agents) = (Value::Null, false);
        for owner in ["daemonsets/nodevitals-agent", "deployments/nodevitals-aggregator"] {
            match get(&api.unary, &format!("{path}/{owner}")).await {
                Ok(mut found) => {
                    spec = found["spec"]["template"]["spec"].take();
                    has_agents = owner.starts_with("daemonsets/");
                    break;
                }
                Err(error) => why.push(said(&error)),
            }
        }
        Template { has_agents, ..Template::of(spec, &why.join("; "), options) }
    }

    pub(super) fn of(spec: Value, why: &str, options: &Options) -> Template {
        let known = options.image.clone().or_else(|| spec["containers"][0]["image"].as_str().map(str::to_owned));
        let image = known.ok_or_else(|| {
            format!("which image the agents had is not known in namespace {}: give --image ({why})", options.namespace)
        });
        let volume = |it: &&Value| it["name"] == "state";
        let volume = spec["volumes"].as_array().and_then(|all| all.iter().find(volume));
        let said = volume.and_then(|it| it["hostPath"]["path"].as_str()).and_then(|path| state_dir(path).ok());
        let directory = options.state_dir.clone().or(said).unwrap_or_else(|| STATE_DIR.to_owned());
        Template { spec, has_agents: false, image, directory, timeout: options.timeout }
    }

    /// Where the agents kept what is theirs.
    pub(super) fn directory(&self) -> &str {
        &self.directory
    }

    /// What removes the directory by hand.
    pub(super) fn by_hand(&self, node: &str) -> String {
        let image = self.image.as_deref().unwrap_or("busybox");
        format!("kubectl debug node/{node} -it --image={image} -- rm -r /host{}", self.directory)
    }

    /// The Pod that erases it on a node.
    ///
    /// # Errors
    /// Why it cannot be made.
    pub(super) fn pod(&self, node: &str, now: Timestamp) -> Result<Value, String> {
        let image = self.image.clone()?;
        let Some((parent, name)) = self.directory.rsplit_once('/') else { return Err(NOT_THEIR_OWN.to_owned()) };
        // Longer than it is waited for, and no second time: the Pod may be found by a kubelet that was away.
        let until = now + jiff::SignedDuration::from_secs(i64::from(self.timeout) + 60);
        let (spec, agent) = (&self.spec, &self.spec["containers"][0]);
        let mut security = json!({
            // As the agent: the files are root's, and so is the directory above, so that no capability is needed.
            "runAsUser": 0, "runAsGroup": 0, "privileged": false, "allowPrivilegeEscalation": false,
            "readOnlyRootFilesystem": true, "capabilities": {"drop": ["ALL"]}, "seccompProfile": {"type": "RuntimeDefault"},
        });
        let options = [&agent["securityContext"], &spec["securityContext"]].map(|it| &it["seLinuxOptions"]);
        if let Some(options) = options.into_iter().find(|it| it.is_object()) {
            security["seLinuxOptions"] = options.clone();
        }
        let mut pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {
                "generateName": "nodevitals-uninstall-",
                "labels": {"app.kubernetes.io/name": "nodevitals", "app.kubernetes.io/component": "uninstall"},
            },
            "spec": {
                // Past the scheduler: also where the label opts out, on cordoned nodes and tainted ones.
                "nodeName": node, "tolerations": [{"operator": "Exists"}],
                "restartPolicy": "Never", "activeDeadlineSeconds": i64::from(self.timeout), "terminationGracePeriodSeconds": 0,
                "automountServiceAccountToken": false, "enableServiceLinks": false,
                // Without a CNI that works; nothing is sent.
                "hostNetwork": true, "dnsPolicy": "Default",
                "containers": [{
                    "name": "erase", "image": image,
                    "args": ["erase", format!("{MOUNTED}/{name}"), "--until", until.to_string()],
                    // What it says last is why it failed.
                    "terminationMessagePolicy": "FallbackToLogsOnError",
                    "securityContext": security,
                    "volumeMounts": [{"name": "parent", "mountPath": MOUNTED}],
                }],
                // A directory can be removed through the one above it only.
                "volumes": [{"name": "parent", "hostPath": {"path": parent, "type": "Directory"}}],
            },
        });
        for key in ["serviceAccountName", "imagePullSecrets", "priorityClassName"] {
            if !spec[key].is_null() {
                pod["spec"][key] = spec[key].clone();
            }
        }
        if !agent["imagePullPolicy"].is_null() {
            pod["spec"]["containers"][0]["imagePullPolicy"] = agent["imagePullPolicy"].clone();
        }
        Ok(pod)
    }
}

/// A directory of the agents' own on the nodes: absolute, below another one, and of plain letters, since people are told a command
/// with it.
pub(super) fn state_dir(text: &str) -> Result<String, String> {
    let plain = |name: &str| {
        let letters = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
        letters && !["", ".", ".."].contains(&name) && !name.starts_with('-')
    };
    match text.strip_prefix('/') {
        Some(rest) if rest.contains('/') && rest.split('/').all(plain) => Ok(text.to_owned()),
        _ => Err(NOT_THEIR_OWN.to_owned()),
    }
}
