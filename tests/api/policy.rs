//! What agent and aggregator may do, by `deploy/`: RBAC and the admission policies.
//!
//! In `policy-cases.json` a string `@ TYPE STATUS REASON [LENGTH]` stands for a whole condition, with a message of that
//! length; `each` is every type of ours. `says` with the name of a policy in front is that policy's refusal.

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::bench::{Answer, Bench, TYPES, condition, condition_of, soon};
use crate::support::control_plane::Bound;
use crate::support::parts;

/// Those about Nodes, and the one about Events.
const POLICIES: [&str; 3] =
    ["nodevitals-agent-own-node", "nodevitals-aggregator-only-unknown", "nodevitals-agent-own-events"];

#[derive(Deserialize)]
struct Section {
    section: String,
    cases: Vec<Asked>,
}

#[derive(Deserialize)]
struct Asked {
    what: String,
    r#as: String,
    request: String,
    #[serde(default)]
    body: Value,
    code: u16,
    #[serde(default)]
    says: String,
}

/// Everybody who asks.
struct Cast {
    agent: String,
    unbound: String,
    aggregator: String,
}

impl Cast {
    fn token(&self, who: &str) -> &str {
        match who {
            "agent" => &self.agent,
            "unbound" => &self.unbound,
            _ => &self.aggregator,
        }
    }
}

/// Nodes w1 and w2, an agent on the first, an aggregator on the second.
fn set_up(bench: &Bench) -> Result<Cast> {
    for node in ["w1", "w2"] {
        bench.add_node(node, &json!({"pool": "a"}))?;
    }
    bench.add_pod("probe-agent", "agent", "w1")?;
    bench.add_pod("probe-aggregator", "aggregator", "w2")?;
    Ok(Cast {
        agent: bench.token("agent", "probe-agent")?,
        unbound: bench.service_account_token("nodevitals", "nodevitals-agent", Bound::Nothing)?,
        aggregator: bench.token("aggregator", "probe-aggregator")?,
    })
}

#[test]
fn agent_and_aggregator_can_do_what_they_must_and_no_more() -> Result<()> {
    let bench = Bench::take()?;
    let cast = set_up(&bench)?;
    wait_for_policies(&bench, &cast);
    let sections: Vec<Section> = serde_json::from_str(include_str!("policy-cases.json"))?;
    let (mut wrong, mut count) = (Vec::new(), 0);
    for section in &sections {
        match section.section.as_str() {
            "agent, with cluster-admin bound by mistake" => bind_by_mistake(&bench, &cast)?,
            "a large Node" => enlarge(&bench, "w1")?,
            _ => {}
        }
        for case in &section.cases {
            count += 1;
            if let Err(error) = ask(&bench, &cast, case) {
                wrong.push(format!("{}: {}: {error:#}", section.section, case.what));
            }
        }
        bench.kubectl(&["delete", "clusterrolebinding", "mistake", "--ignore-not-found"])?;
    }
    assert!(wrong.is_empty(), "{} of {count}:\n{}", wrong.len(), wrong.join("\n"));
    assert_eq!(count, 139);
    nobody_else_is_bound(&bench)?;
    without_the_policy_all_of_it_goes_through(&bench, &cast)
}

#[test]
fn people_with_the_viewers_role_can_read_the_report() -> Result<()> {
    let bench = Bench::take()?;
    bench.kubectl(&["create", "serviceaccount", "viewer", "--namespace", "default"])?;
    let viewer = ["create", "clusterrolebinding", "viewer", "--clusterrole=nodevitals-viewer"];
    bench.kubectl(&[&viewer[..], &["--serviceaccount=default:viewer"]].concat())?;
    let token = bench.service_account_token("default", "viewer", Bound::Nothing)?;
    let code = |request: &str| Ok::<_, anyhow::Error>(bench.send(&token, request, &Value::Null)?.code);
    let service = |name: &str| format!("/api/v1/namespaces/nodevitals/services/{name}/proxy/api/v1/report");
    let aggregator = service("nodevitals-aggregator:http");
    // It is let through, to where nothing is.
    soon("the role counts", || {
        ensure!([404, 503].contains(&code(&format!("GET {aggregator}"))?));
        Ok(())
    });
    assert_eq!(code(&format!("GET {}", service("nodevitals-aggregator")))?, 403);
    assert_eq!(code(&format!("GET {}", service("nodevitals-agent:http")))?, 403);
    assert_eq!(code(&format!("POST {aggregator}"))?, 403);
    assert_eq!(code("GET /api/v1/nodes")?, 200);
    assert_eq!(code("GET /api/v1/secrets")?, 403);
    Ok(())
}

#[test]
fn the_policies_are_sound() -> Result<()> {
    let bench = Bench::take()?;
    // The part of the controller manager that checks the types in policies, and nothing else of it.
    let kubeconfig = format!("--kubeconfig={}", bench.admin_kubeconfig()?.display());
    let program = parts::program("kube-controller-manager")?.display().to_string();
    let only = "--controllers=validatingadmissionpolicy-status-controller";
    bench.host().spawn("type-checker", &[&program, &kubeconfig, only, "--leader-elect=false"])?;
    for name in POLICIES {
        let path = format!("GET /apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies/{name}");
        let policy = soon("the types are checked", || {
            let policy = bench.admin(&path, &Value::Null)?;
            ensure!(policy["status"]["observedGeneration"] == policy["metadata"]["generation"], "{}", policy["status"]);
            Ok(policy)
        });
        assert!(policy["status"]["typeChecking"]["expressionWarnings"].is_null(), "{}", policy["status"]);
        let text = policy["spec"].to_string();
        let about_nodes = name != POLICIES[2];
        let names_all = TYPES.iter().all(|kind| text.contains(&format!("'{kind}'")));
        assert!(!about_nodes || names_all, "{name} names all of our types");
    }
    bench.host().kill("type-checker")
}

/// A policy counts a moment after it is applied.
fn wait_for_policies(bench: &Bench, cast: &Cast) {
    let body = json!({"status": {"conditions": [condition("Ready", "Unknown", "NotAllowed")]}});
    for token in [&cast.agent, &cast.aggregator] {
        soon("the policies count", || {
            let answer = bench.send(token, "PATCH strategic /api/v1/nodes/w1/status?dryRun=All", &body)?;
            ensure!(answer.code == 403, "{answer:?}");
            Ok(())
        });
    }
}

fn ask(bench: &Bench, cast: &Cast, asked: &Asked) -> Result<()> {
    let token = cast.token(&asked.r#as);
    let body = match asked.body.get("@ as read, with") {
        Some(added) => {
            let mut node = bench.send(token, "GET /api/v1/nodes/w1", &Value::Null)?.body;
            node["status"]["conditions"].as_array_mut().context("conditions")?.push(whole(added));
            node
        }
        None => whole(&asked.body),
    };
    let Answer { code, body } = bench.send(token, &asked.request, &body)?;
    let message = body["message"].as_str().unwrap_or_default();
    // Let through to a Service that nothing serves: the answer depends on whether it ever had an EndpointSlice.
    let nothing_there = asked.code == 503 && code == 404;
    ensure!(code == asked.code || nothing_there, "{code} instead of {}: {message}", asked.code);
    let said = match asked.says.split_once(": ") {
        Some((policy, _)) if POLICIES.contains(&policy) => message.ends_with(&format!(
            "ValidatingAdmissionPolicy '{policy}' with binding '{policy}' denied request: {}",
            asked.says
        )),
        _ => message.contains(&asked.says),
    };
    ensure!(said, "says {message:?} instead of {:?}", asked.says);
    if asked.what.starts_with("taint through status") {
        let spec = &body["spec"];
        ensure!(!spec.to_string().contains("evil") && spec["unschedulable"].is_null(), "{spec}");
    }
    Ok(())
}

/// A body with its abbreviations written out.
fn whole(body: &Value) -> Value {
    match body {
        Value::String(text) => match text.strip_prefix("@ ") {
            Some("filler") => format!("[{}]", "x".repeat(8000)).into(),
            Some(short) => written_out(short).remove(0),
            None => body.clone(),
        },
        Value::Array(list) => list
            .iter()
            .flat_map(|element| match element.as_str().and_then(|text| text.strip_prefix("@ ")) {
                Some(short) => written_out(short),
                None => vec![whole(element)],
            })
            .collect(),
        Value::Object(object) => object.iter().map(|(key, value)| (key.clone(), whole(value))).collect(),
        other => other.clone(),
    }
}

fn written_out(short: &str) -> Vec<Value> {
    let words: Vec<_> = short.split(' ').collect();
    let kinds = if words[0] == "each" { TYPES.to_vec() } else { vec![words[0]] };
    let message = "m".repeat(words.get(3).and_then(|length| length.parse().ok()).unwrap_or(1));
    let one = |kind| {
        let mut condition = condition(kind, words[1], words[2]);
        condition["message"] = json!(message);
        condition
    };
    kinds.into_iter().map(one).collect()
}

fn bind_by_mistake(bench: &Bench, cast: &Cast) -> Result<()> {
    let binding = ["create", "clusterrolebinding", "mistake", "--clusterrole=cluster-admin"];
    bench.kubectl(&[&binding[..], &["--serviceaccount=nodevitals:nodevitals-agent"]].concat())?;
    soon("the binding counts", || {
        let answer = bench.send(&cast.agent, "GET /api/v1/nodes", &Value::Null)?;
        ensure!(answer.code == 200, "{answer:?}");
        Ok(())
    });
    Ok(())
}

/// As large as a Node of a loaded worker, and larger.
fn enlarge(bench: &Bench, node: &str) -> Result<()> {
    let filled = |count: usize, text: &str| (0..count).map(|number| format!("{number}{text}")).collect::<Vec<_>>();
    let volumes: Vec<_> =
        filled(250, &"v".repeat(80)).into_iter().map(|name| format!("kubernetes.io/csi/{name}")).collect();
    let mut annotations: serde_json::Map<_, _> =
        (0..190).map(|number| (format!("big/{number}"), json!("x".repeat(1200)))).collect();
    annotations.insert("nodevitals.dev/findings".into(), json!("f".repeat(8000)));
    let labels: serde_json::Map<_, _> = (0..60).map(|number| (format!("l{number}"), json!("v".repeat(50)))).collect();
    let conditions: Vec<_> = (0..60).map(|number| condition(&format!("T{number}"), "False", "R")).collect();
    let patch = json!({
        "metadata": {"annotations": annotations, "labels": labels},
        "status": {
            "conditions": conditions, "volumesInUse": volumes,
            "volumesAttached": volumes.iter().map(|name| json!({"name": name, "devicePath": ""})).collect::<Vec<_>>(),
        },
    });
    bench.admin(&format!("PATCH strategic /api/v1/nodes/{node}/status"), &patch)?;
    Ok(())
}

fn nobody_else_is_bound(bench: &Bench) -> Result<()> {
    let not_ready = json!({"status": {"conditions": [condition("Ready", "False", "X")]}});
    bench.admin("PATCH strategic /api/v1/nodes/w1/status", &not_ready)?;
    bench.admin("PATCH merge /api/v1/nodes/w1", &json!({"metadata": {"labels": {"z": "z"}}}))?;
    Ok(())
}

/// What was tested is the policy: RBAC alone does not hold.
fn without_the_policy_all_of_it_goes_through(bench: &Bench, cast: &Cast) -> Result<()> {
    let binding = "validatingadmissionpolicybindings/nodevitals-agent-own-node";
    let kept = bench.kubectl(&["get", binding, "-o", "json"])?;
    bench.kubectl(&["delete", binding])?;
    let patch = json!({
        "metadata": {"labels": {"x": "y"}, "annotations": {"evil/x": "y"}},
        "status": {"capacity": {"cpu": "400"}, "conditions": [condition("Ready", "False", "X")]},
    });
    let node = soon("the binding is gone", || {
        let answer = bench.send(&cast.agent, "PATCH strategic /api/v1/nodes/w2/status", &patch)?;
        ensure!(answer.code == 200, "{answer:?}");
        Ok(answer.body)
    });
    let mut binding: Value = serde_json::from_str(&kept)?;
    for field in ["resourceVersion", "uid", "creationTimestamp", "generation", "managedFields"] {
        binding["metadata"].as_object_mut().context("metadata")?.remove(field);
    }
    bench.apply(&binding.to_string())?;
    wait_for_policies(bench, cast);
    assert_eq!(node["metadata"]["labels"]["x"], "y");
    assert_eq!(node["metadata"]["annotations"]["evil/x"], "y");
    assert_eq!(node["status"]["capacity"]["cpu"], "400");
    assert_eq!(condition_of(&node, "Ready")?["status"], "False");
    Ok(())
}
