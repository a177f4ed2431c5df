//! What `--yes` does, one step at a time. What is done is written on the Node before and after it, so that whoever is
//! interrupted, and whoever comes after, knows how things stand.

use std::time::Duration;

use jiff::Timestamp;
use kube::Client;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::look::{ACCESS, Look, NEW_HOME, OLD_HOME};
use super::memory::{Done, Memory, Outcome};
use super::situation::Pod;
use crate::api::{call, get, said};
use crate::verdict::{annotation, parse_findings};

/// Between two looks while something is waited for.
const AGAIN: Duration = Duration::from_secs(2);
/// A Node is written anew by its kubelet all the time: a patch that comes too late is made again so often.
const TRIES: usize = 5;

/// What a step came to.
pub(super) type Stepped = Result<(Outcome, String), String>;

/// Takes this step.
pub(super) async fn step(client: &Client, look: &Look, key: &str, patience: Duration) -> Stepped {
    match key {
        "cordon" => cordon(client, look).await,
        "uncordon" => uncordon(client, look).await,
        "delete-calico-node" => delete_calico_node(client, look, patience).await,
        "copy-bgp-secret" => copy_bgp_secret(client, look).await,
        "bgp-secret-access" => bgp_secret_access(client, look, patience).await,
        other => Err(format!("{other} is no step of this command")),
    }
}

/// The memory to go on with: that of this repair, or a new one.
fn memory(look: &Look) -> Memory {
    let situation = &look.situation;
    let (code, since) = match (&situation.root, situation.open()) {
        (Some(root), _) => (root.code.clone(), situation.begun().unwrap_or(root.since)),
        (None, Some(open)) => (open.code.clone(), open.since),
        (None, None) => (String::new(), situation.now),
    };
    let before = situation.open();
    let same = before.filter(|open| open.code == code);
    let evidence = match &situation.evidence {
        super::evidence::Evidence::Taken(bundle) => bundle.at.to_string(),
        super::evidence::Evidence::Declined => "declined".to_owned(),
        _ => same.map(|open| open.evidence.clone()).unwrap_or_default(),
    };
    Memory {
        code,
        since,
        // The cordon is that of the repair before, whatever it was for.
        cordoned: situation.node.cordoned && before.is_some_and(|open| open.cordoned),
        boot: same.map_or_else(|| situation.node.boot.clone(), |open| open.boot.clone()),
        evidence,
        steps: same.map(|open| open.steps.clone()).unwrap_or_default(),
        ended: None,
    }
}

/// Writes what is remembered, and whether pods may come, at once.
async fn write(client: &Client, node: &Value, memory: &Memory, unschedulable: Option<bool>) -> Result<(), String> {
    let name = node["metadata"]["name"].as_str().unwrap_or_default();
    let text = serde_json::to_string(memory).map_err(|error| error.to_string())?;
    let mut version = node["metadata"]["resourceVersion"].clone();
    let was = node["spec"]["unschedulable"] == true;
    for _ in 0..TRIES {
        let mut patch = json!({"metadata": {"resourceVersion": version, "annotations": {annotation::REPAIR: text}}});
        if let Some(unschedulable) = unschedulable {
            patch["spec"] = json!({"unschedulable": if unschedulable { json!(true) } else { Value::Null }});
        }
        let request = request(
            "PATCH",
            &format!("/api/v1/nodes/{name}?fieldManager=nodevitals-repair"),
            "merge-patch+json",
            &patch,
        )?;
        match call(client, request).await {
            Ok(_) => return Ok(()),
            Err(kube::Error::Api(status)) if status.code == 409 => {
                let now = get(client, &format!("/api/v1/nodes/{name}")).await.map_err(|error| said(&error))?;
                if (now["spec"]["unschedulable"] == true) != was {
                    return Err(format!("somebody else cordoned or uncordoned {name} in this moment"));
                }
                version = now["metadata"]["resourceVersion"].clone();
            }
            Err(error) => return Err(format!("node {name}: {}", said(&error))),
        }
    }
    Err(format!("node {name} changes faster than it can be written"))
}

fn request(method: &str, path: &str, kind: &str, body: &Value) -> Result<http::Request<Vec<u8>>, String> {
    let request = http::Request::builder().method(method).uri(path);
    let request = request.header(http::header::CONTENT_TYPE, format!("application/{kind}"));
    request.body(body.to_string().into_bytes()).map_err(|error| error.to_string())
}

async fn note(client: &Client, look: &Look, memory: &mut Memory, step: &str, outcome: Outcome) -> Result<(), String> {
    memory.note(step, outcome, Timestamp::now());
    write(client, &look.node, memory, None).await
}

async fn cordon(client: &Client, look: &Look) -> Stepped {
    let mut memory = memory(look);
    memory.cordoned = true;
    memory.note("cordon", Outcome::Done, Timestamp::now());
    write(client, &look.node, &memory, Some(true)).await?;
    Ok((Outcome::Done, "cordoned".to_owned()))
}

async fn uncordon(client: &Client, look: &Look) -> Stepped {
    let mut memory = look.situation.node.memory.clone().unwrap_or_else(|| memory(look));
    let by = memory.steps.iter().rev().find(|done| done.outcome == Outcome::Cured).map(|done| done.step.clone());
    let by = by.unwrap_or_else(|| "something else than this command".to_owned());
    memory.cordoned = false;
    memory.ended = Some(Done { step: by.clone(), at: Timestamp::now(), outcome: Outcome::Cured });
    write(client, &look.node, &memory, Some(false)).await?;
    Ok((Outcome::Done, format!("uncordoned; what cured {} was {by}", memory.code)))
}

async fn delete_calico_node(client: &Client, look: &Look, patience: Duration) -> Stepped {
    let situation = &look.situation;
    let pod = situation.calico_node().ok_or("there is no calico-node pod on this node")?.clone();
    let mut memory = memory(look);
    let resumed = memory.outcome("delete-calico-node") == Some(Outcome::Begun);
    if !resumed {
        note(client, look, &mut memory, "delete-calico-node", Outcome::Begun).await?;
        // Only this very pod: it may have been replaced since it was looked at.
        let options = json!({"apiVersion": "v1", "kind": "DeleteOptions", "preconditions": {"uid": pod.uid}});
        let path = format!("/api/v1/namespaces/{}/pods/{}", pod.namespace, pod.name);
        match call(client, request("DELETE", &path, "json", &options)?).await {
            Ok(_) => {}
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            Err(error) => return Err(format!("pod {}/{}: {}", pod.namespace, pod.name, said(&error))),
        }
    }
    let old = (!resumed).then_some(pod.uid.as_str());
    let (outcome, text) = cured(client, &situation.node.name, &pod.namespace, old, &memory.code, patience).await;
    came_to(client, look, &mut memory, "delete-calico-node", outcome).await?;
    Ok((outcome, text))
}

/// Notes what came of a step that is meant to cure. Where nobody has to be let in again, the repair ends with it.
async fn came_to(
    client: &Client,
    look: &Look,
    memory: &mut Memory,
    step: &str,
    outcome: Outcome,
) -> Result<(), String> {
    if outcome == Outcome::Cured && !memory.cordoned {
        memory.ended = Some(Done { step: step.to_owned(), at: Timestamp::now(), outcome });
    }
    note(client, look, memory, step, outcome).await
}

async fn copy_bgp_secret(client: &Client, look: &Look) -> Stepped {
    let Some(bgp) = &look.situation.bgp else { return Err("there is no BGP password to copy".to_owned()) };
    let name = &bgp.secret;
    let path = format!("/api/v1/namespaces/{OLD_HOME}/secrets/{name}");
    let old = get(client, &path).await.map_err(|error| format!("secret {OLD_HOME}/{name}: {}", said(&error)))?;
    // Neither owner nor labels: by them the copy would be removed again with the old one, or by the operator.
    let copy = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name, "namespace": NEW_HOME},
        "type": old["type"], "data": old["data"]});
    let path = format!("/api/v1/namespaces/{NEW_HOME}/secrets?fieldManager=nodevitals-repair");
    match call(client, request("POST", &path, "json", &copy)?).await {
        Ok(_) => {}
        Err(kube::Error::Api(status)) if status.code == 409 => {}
        Err(error) => return Err(format!("secret {NEW_HOME}/{name}: {}", said(&error))),
    }
    let mut memory = memory(look);
    note(client, look, &mut memory, "copy-bgp-secret", Outcome::Done).await?;
    Ok((Outcome::Done, format!("copied the Secret {name} from {OLD_HOME} to {NEW_HOME}")))
}

async fn bgp_secret_access(client: &Client, look: &Look, patience: Duration) -> Stepped {
    let Some(bgp) = &look.situation.bgp else { return Err("there is no BGP password to be read".to_owned()) };
    let group = "rbac.authorization.k8s.io";
    let meta = json!({"name": ACCESS, "namespace": NEW_HOME});
    let role = json!({"apiVersion": format!("{group}/v1"), "kind": "Role", "metadata": meta,
        "rules": [{"apiGroups": [""], "resources": ["secrets"], "resourceNames": [bgp.secret],
            "verbs": ["watch", "list", "get"]}]});
    let binding = json!({"apiVersion": format!("{group}/v1"), "kind": "RoleBinding", "metadata": meta,
        "roleRef": {"apiGroup": group, "kind": "Role", "name": ACCESS},
        "subjects": [{"kind": "ServiceAccount", "name": "calico-node", "namespace": NEW_HOME}]});
    for (kind, object) in [("roles", role), ("rolebindings", binding)] {
        let path = format!("/apis/{group}/v1/namespaces/{NEW_HOME}/{kind}/{ACCESS}?fieldManager=nodevitals-repair");
        let applied = call(client, request("PATCH", &path, "apply-patch+yaml", &object)?).await;
        applied.map_err(|error| format!("{kind} {NEW_HOME}/{ACCESS}: {}", said(&error)))?;
    }
    let mut memory = memory(look);
    note(client, look, &mut memory, "bgp-secret-access", Outcome::Begun).await?;
    let told = look.situation.codes.iter().find(|code| code.starts_with("Bgp"));
    let code = told.unwrap_or(&memory.code).clone();
    let (outcome, text) = cured(client, &look.situation.node.name, NEW_HOME, None, &code, patience).await;
    came_to(client, look, &mut memory, "bgp-secret-access", outcome).await?;
    Ok((outcome, text))
}

/// Waits until calico-node is Ready on the node, by another pod than `old`, and the node's agent no longer tells of `code`.
async fn cured(
    client: &Client,
    node: &str,
    namespace: &str,
    old: Option<&str>,
    code: &str,
    patience: Duration,
) -> (Outcome, String) {
    let end = Instant::now() + patience;
    loop {
        let why = match not_cured(client, node, namespace, old, code).await {
            Ok(None) => return (Outcome::Cured, format!("calico-node is Ready on {node}, and {code} is gone")),
            Ok(Some(why)) | Err(why) => why,
        };
        if Instant::now() >= end {
            return (Outcome::NotCured, format!("after {} s {why}", patience.as_secs()));
        }
        tokio::time::sleep(AGAIN).await;
    }
}

/// What is still wrong.
async fn not_cured(
    client: &Client,
    node: &str,
    namespace: &str,
    old: Option<&str>,
    code: &str,
) -> Result<Option<String>, String> {
    let path = format!("/api/v1/namespaces/{namespace}/pods");
    let mut pods = Vec::new();
    let query = format!("labelSelector=k8s-app%3Dcalico-node&fieldSelector=spec.nodeName%3D{node}");
    let listed = crate::api::list(client, &path, &query, &mut |pod| pods.push(Pod::read(pod))).await;
    listed.map_err(|error| format!("pods cannot be listed: {}", said(&error)))?;
    let new = pods.iter().find(|pod| !pod.deleting && Some(pod.uid.as_str()) != old);
    let Some(new) = new else { return Ok(Some("there is no new calico-node pod".to_owned())) };
    if !new.ready {
        return Ok(Some(super::ladder::describe(new)));
    }
    let node = get(client, &format!("/api/v1/nodes/{node}")).await.map_err(|error| said(&error))?;
    let findings = node["metadata"]["annotations"][annotation::FINDINGS].as_str().unwrap_or("[]");
    let still = parse_findings(findings).iter().any(|finding| finding.code == code);
    Ok(still.then(|| format!("calico-node is Ready, and the node still tells of {code}")))
}

/// How the Node was left, for whoever is interrupted.
pub(super) async fn left(client: &Client, name: &str) -> String {
    let asked = tokio::time::timeout(Duration::from_secs(5), get(client, &format!("/api/v1/nodes/{name}"))).await;
    let Ok(Ok(node)) = asked else {
        return format!("the API server does not say how {name} was left: look with `nodevitals repair {name}`");
    };
    let memory = node["metadata"]["annotations"][annotation::REPAIR].as_str().and_then(Memory::parse);
    let steps: Vec<String> = memory
        .iter()
        .flat_map(|memory| &memory.steps)
        .map(|done| format!("{} ({})", done.step, done.outcome.as_str()))
        .collect();
    let steps =
        if steps.is_empty() { "nothing was done".to_owned() } else { format!("done so far: {}", steps.join(", ")) };
    let cordon = match (node["spec"]["unschedulable"] == true, memory.is_some_and(|memory| memory.cordoned)) {
        (true, true) => {
            format!("{name} is cordoned by this repair: go on with the same command, or `kubectl uncordon {name}`")
        }
        (true, false) => format!("{name} is cordoned, but not by this repair"),
        (false, _) => format!("{name} is not cordoned"),
    };
    format!("{steps}; {cordon}")
}
