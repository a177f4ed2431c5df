//! `nodevitals repair` against a real API server with planted workers: what it does, and what it refuses to do.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::bench::{Bench, now};
use crate::plant::{BGP, BUDGETS, CNI, INGRESSES, Plant, SICK};

#[test]
fn without_yes_everything_is_shown_and_nothing_done() -> Result<()> {
    let plant = Plant::new(CNI, "kube-system")?;
    let before = plant.bench.node(SICK)?;
    let bundle = plant.evidence.path().to_str().context("UTF-8")?;
    let plan = plant.run(&["--evidence", bundle])?;
    plan.is(
        2,
        &[
            "r1  Kubernetes  critical CniConfigMissing",
            "On 1 of 4 workers.",
            "calico-node    kube-system/calico-node-r1 Running, not Ready, 0 restarts",
            "3 Ready and open to pods, 1 in zone za",
            "kubectl cordon r1",
            "kubectl delete pod -n kube-system calico-node-r1",
            "destroys: the pod, its logs",
            "+ evidence of this episode: taken at ",
            "Next: A cordon is next, and may be done now",
            "nodevitals repair r1 --yes",
        ],
    );
    let json = plant.run(&["-o", "json"])?;
    json.is(3, &[]);
    let json: Value = serde_json::from_str(&json.out)?;
    assert_eq!(
        (&json["kind"], &json["verdict"], &json["next"]),
        (&json!("RepairPlan"), &json!("refused"), &json!("cordon"))
    );
    assert_eq!(json["trouble"]["code"], "CniConfigMissing");
    let needs = json["steps"][0]["needs"].as_array().context("needs")?;
    assert!(needs.iter().any(|need| need["what"] == "evidence of this episode" && need["holds"] == false), "{needs:?}");
    let after = plant.bench.node(SICK)?;
    assert_eq!(before["metadata"]["resourceVersion"], after["metadata"]["resourceVersion"]);
    assert_eq!(plant.pods_there("kube-system")?, ["calico-node-r1"]);
    Ok(())
}

#[test]
fn it_climbs_until_the_worker_is_cured_and_lets_pods_in_again() -> Result<()> {
    let plant = Plant::new(CNI, "kube-system")?;
    let ended = plant.with_a_controller(|| plant.yes(&["--wait", "60"]))?;
    ended.is(
        0,
        &["Healthy: nothing is to be repaired on r1", "cordon: done", "delete-calico-node: cured", "uncordon: done"],
    );
    assert!(!plant.is_cordoned()?);
    assert_eq!(plant.pods_there("kube-system")?, ["calico-node-new"]);
    let memory = plant.memory()?;
    assert_eq!(
        (&memory["ended"]["step"], &memory["ended"]["outcome"]),
        (&json!("delete-calico-node"), &json!("cured"))
    );
    assert_eq!((&memory["code"], &memory["cordoned"]), (&json!("CniConfigMissing"), &json!(false)));
    // Also where people look.
    assert_eq!(plant.events()?, ["RepairStepDone Normal", "RepairCured Normal", "RepairEnded Normal"]);
    // In this order, each with what is remembered of it, and nothing else of the Node was written.
    let writes = plant.bench.writes_on(SICK, "admin")?;
    let bodies: Vec<&Value> = writes
        .iter()
        .filter(|write| write["responseStatus"]["code"] == 200)
        .map(|write| &write["requestObject"])
        .filter(|body| body["metadata"]["annotations"]["nodevitals.dev/repair"].is_string())
        .collect();
    let last: Vec<&Value> = bodies.iter().rev().take(4).rev().map(|body| &body["spec"]["unschedulable"]).collect();
    assert_eq!(last, [&json!(true), &Value::Null, &Value::Null, &Value::Null], "{bodies:#?}");
    // Nothing is left to do.
    plant.run(&["--yes"])?.is(0, &["Healthy"]);
    Ok(())
}

#[test]
fn what_does_not_cure_leads_to_the_next_step_and_only_the_own_cordon_is_taken_off() -> Result<()> {
    let plant = Plant::new(CNI, "kube-system")?;
    let budget = json!({"apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": {"name": "web"},
        "spec": {"minAvailable": 1, "selector": {"matchLabels": {"app": "web"}}}});
    plant.bench.admin(&format!("POST {BUDGETS}"), &budget)?;
    let account =
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default", "namespace": "default"}});
    plant.bench.apply(&account.to_string())?;
    let web = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web-1", "labels": {"app": "web"}},
        "spec": {"nodeName": SICK, "containers": [{"name": "c", "image": "x"}]}});
    plant.bench.admin("POST /api/v1/namespaces/default/pods", &web)?;
    let ready = json!({"status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}});
    plant.bench.admin("PATCH strategic /api/v1/namespaces/default/pods/web-1/status", &ready)?;

    // Nobody makes the pod anew.
    let ended = plant.yes(&["--wait", "2"])?;
    ended.is(
        3,
        &[
            "delete-calico-node: not cured: after 2 s there is no new calico-node pod",
            "A drain would do harm now",
            "web holds default/web-1",
        ],
    );
    assert!(plant.is_cordoned()?);
    assert_eq!(
        plant.memory()?["steps"][1],
        json!({"step": "delete-calico-node", "outcome": "notCured", "at": plant.memory()?["steps"][1]["at"]})
    );

    // With room for it the drain is a person's.
    plant.bench.admin(&format!("DELETE {BUDGETS}/web"), &Value::Null)?;
    plant.yes(&[])?.is(2, &["[done, did not cure]", "kubectl drain r1", "Yours: A drain is next"]);
    // In a zone that serves Ingress, not the last one.
    let ingress = json!({"apiVersion": "networking.k8s.io/v1", "kind": "Ingress", "metadata": {"name": "shop"},
        "spec": {"defaultBackend": {"service": {"name": "shop", "port": {"number": 80}}}}});
    plant.bench.admin(&format!("POST {INGRESSES}"), &ingress)?;
    plant.bench.admin("PATCH merge /api/v1/nodes/r2", &json!({"spec": {"unschedulable": true}}))?;
    plant.yes(&[])?.is(3, &["there is Ingress, and nobody else serves it in za"]);
    plant.bench.admin("PATCH merge /api/v1/nodes/r2", &json!({"spec": {"unschedulable": null}}))?;

    // What is left is the agent's own pod, which a drain leaves there.
    let owner = json!([{"apiVersion": "apps/v1", "kind": "DaemonSet", "name": "nodevitals-agent", "uid": "d"}]);
    let patch = json!({"metadata": {"ownerReferences": owner}});
    plant.bench.admin("PATCH merge /api/v1/namespaces/nodevitals/pods/agent-r1", &patch)?;
    // Drained and booted anew, it is cured: it was this repair that cordoned it.
    plant.bench.kubectl(&["delete", "pod", "web-1", "--grace-period=0", "--force"])?;
    plant.yes(&[])?.is(2, &["Yours: A reboot is next", "systemctl reboot"]);
    plant.bench.tell(SICK, None, &now())?;
    plant.bench.add_calico_node("calico-node-after", "kube-system", SICK, true)?;
    plant.yes(&[])?.is(0, &["uncordon: done: uncordoned; what cured CniConfigMissing was something else"]);
    assert!(!plant.is_cordoned()?);

    // What somebody else cordoned stays so.
    plant.bench.admin("PATCH merge /api/v1/nodes/r1", &json!({"spec": {"unschedulable": true}}))?;
    plant.yes(&[])?.is(0, &["cordoned, but not by a repair"]);
    assert!(plant.is_cordoned()?);
    Ok(())
}

#[test]
fn whoever_is_interrupted_is_told_how_things_stand_and_goes_on_from_there() -> Result<()> {
    let plant = Plant::new(CNI, "kube-system")?;
    let bundle = plant.evidence.path().to_str().context("UTF-8")?.to_owned();
    let interrupt = ["timeout", "--preserve-status", "--signal=INT", "15"];
    let ended = plant.run_with(&interrupt, &["--yes", "--evidence", &bundle])?;
    assert_eq!(ended.code, Some(130), "{}", ended.err);
    let said = "interrupted; done so far: cordon (done), delete-calico-node (begun); r1 is cordoned by this repair: go on \
                with the same command, or `kubectl uncordon r1`";
    assert!(ended.err.contains(said), "{}", ended.err);
    plant.bench.add_calico_node("calico-node-late", "kube-system", SICK, true)?;
    plant.bench.tell(SICK, None, &now())?;
    plant.bench.tell(SICK, Some(CNI), &now())?;
    // The agent takes a moment; meanwhile the pod that came is not deleted as well.
    let ended = plant.yes(&["--wait", "2"])?;
    ended.is(2, &["delete-calico-node: not cured: after 2 s calico-node is Ready, and the node still tells of CniConfigMissing"]);
    assert_eq!(plant.pods_there("kube-system")?, ["calico-node-late"]);
    Ok(())
}

/// Refused with this text, and nothing is done.
#[track_caller]
fn refused(plant: &Plant, arguments: &[&str], says: &[&str]) -> Result<()> {
    plant.run(&[&["--yes"], arguments].concat())?.is(3, says);
    assert!(!plant.is_cordoned()?);
    assert!(plant.memory().is_err());
    assert_eq!(plant.pods_there("kube-system")?, ["calico-node-r1"]);
    Ok(())
}

#[test]
fn what_would_do_harm_is_refused() -> Result<()> {
    let plant = Plant::new(CNI, "kube-system")?;
    let bundle = plant.evidence.path().to_str().context("UTF-8")?.to_owned();
    let evidence = ["--evidence", &*bundle];
    refused(
        &plant,
        &[],
        &["Refused: A cordon would do harm now: evidence of this episode: none", "nodevitals gather"],
    )?;
    assert_eq!(plant.events()?, ["RepairRefused Warning"]);
    refused(&plant, &["--evidence", "/nonexistent"], &["evidence of this episode: /nonexistent: "])?;

    let all = |unschedulable: Value| {
        ["r2", "r3", "r4"].into_iter().try_for_each(|name| {
            let patch = json!({"spec": {"unschedulable": unschedulable}});
            plant.bench.admin(&format!("PATCH merge /api/v1/nodes/{name}"), &patch).map(drop)
        })
    };
    all(json!(true))?;
    refused(
        &plant,
        &evidence,
        &["not the last Ready worker: no other worker is Ready and takes pods", "add a worker first"],
    )?;
    all(Value::Null)?;

    let memory = json!({"code": "X", "since": now(), "cordoned": true}).to_string();
    let remember = |memory: Value| {
        let patch = json!({"metadata": {"annotations": {"nodevitals.dev/repair": memory}}});
        plant.bench.admin("PATCH merge /api/v1/nodes/r2", &patch).map(drop)
    };
    remember(json!(memory))?;
    refused(&plant, &evidence, &["no other repair in the zone: r2 is under repair"])?;
    remember(Value::Null)?;

    for name in ["r2", "r3"] {
        plant.bench.tell(name, Some(CNI), &now())?;
    }
    refused(
        &plant,
        &evidence,
        &["CniConfigMissing is on 3 of 4 workers, so no single one is cured for it", "Steps (widespread)"],
    )?;
    plant.bench.tell("r4", Some(CNI), &now())?;
    refused(&plant, &evidence, &["CniConfigMissing is on 4 of 4 workers", "do not cordon, drain, reboot or reload"])?;
    for name in ["r2", "r3", "r4"] {
        plant.bench.tell(name, None, &now())?;
    }

    plant.bench.set_ready("agent-r1", false)?;
    let long_ago = json!({"status": {"conditions": [{"type": "Ready", "status": "False", "lastTransitionTime": "2026-11-01T10:00:00Z"}]}});
    plant.bench.admin("PATCH strategic /api/v1/namespaces/nodevitals/pods/agent-r1/status", &long_ago)?;
    refused(&plant, &evidence, &["nobody knows what is wrong on r1 now", "look at the agent's Pod"])?;
    plant.bench.set_ready("agent-r1", true)?;

    let not_ready =
        json!({"status": {"conditions": [{"type": "Ready", "status": "False", "reason": "KubeletNotReady"}]}});
    plant.bench.admin("PATCH strategic /api/v1/nodes/r1/status", &not_ready)?;
    refused(&plant, &evidence, &["r1 is only left over from before a worker was updated or reloaded"])
}

#[test]
fn rights_that_are_missing_are_named() -> Result<()> {
    let mut plant = Plant::new(CNI, "kube-system")?;
    let bundle = plant.evidence.path().to_str().context("UTF-8")?.to_owned();
    plant.kubeconfig = plant.bench.kubeconfig("looker", &["lookers"])?;
    let role = |rules: Value| {
        json!({"apiVersion": "v1", "kind": "List", "items": [
            {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": "looker"}, "rules": rules},
            {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": "looker"},
                "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "looker"},
                "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": "lookers"}]}]})
    };
    let read = json!({"apiGroups": ["", "policy", "networking.k8s.io"], "verbs": ["get", "list"],
        "resources": ["nodes", "pods", "poddisruptionbudgets", "ingresses"]});
    plant.bench.apply(&role(json!([read])).to_string())?;
    let refused = crate::bench::soon("the rights are in force", || {
        let ended = plant.run(&["--yes", "--evidence", &bundle])?;
        ensure!(ended.code == Some(3), "{} {}", ended.out, ended.err);
        Ok(ended)
    });
    refused
        .is(3, &["your kubeconfig may do it: missing: patch nodes, delete pods in kube-system; ask for these rights"]);
    // Without even the right to look it says which.
    plant.bench.apply(&role(json!([])).to_string())?;
    let ended = crate::bench::soon("the rights are gone", || {
        let ended = plant.run(&[])?;
        ensure!(ended.code == Some(1), "{}", ended.out);
        Ok(ended)
    });
    assert!(ended.err.contains("cannot get resource \"nodes\""), "{}", ended.err);

    // An agent repairs nothing, whatever it may.
    plant.kubeconfig = plant.bench.kubeconfig_of("agent", "agent-r1")?;
    let ended = plant.run(&["--yes", "--evidence", &bundle])?;
    assert_eq!(ended.code, Some(64), "{}", ended.err);
    assert!(ended.err.contains("is an account of NodeVitals"), "{}", ended.err);
    plant.kubeconfig = plant.bench.admin_kubeconfig()?;
    plant.bench.kubectl(&["delete", "clusterrole,clusterrolebinding", "looker"])?;
    Ok(())
}

#[test]
fn the_bgp_password_is_copied_with_the_rights_to_read_it() -> Result<()> {
    let bench = Bench::take()?;
    bench.add_calico_kind("bgpconfigurations", "BGPConfiguration")?;
    bench.apply(r#"{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "calico-system"}}"#)?;
    let secret = json!({"apiVersion": "v1", "kind": "Secret", "type": "Opaque",
        "metadata": {"name": "calico-bgp-password", "namespace": "kube-system", "labels": {"by": "operator"},
            "ownerReferences": [{"apiVersion": "v1", "kind": "ConfigMap", "name": "gone", "uid": "1"}]},
        "stringData": {"password": "hunter2-of-bgp"}});
    bench.apply(&secret.to_string())?;
    let configuration = json!({"apiVersion": "crd.projectcalico.org/v1", "kind": "BGPConfiguration", "metadata": {"name": "default"},
        "spec": {"nodeMeshPassword": {"secretKeyRef": {"name": "calico-bgp-password", "key": "password"}}}});
    bench.apply(&configuration.to_string())?;
    drop(bench);

    let plant = Plant::new(BGP, "calico-system")?;
    let shown = plant.run(&["--no-evidence"])?;
    shown.is(
        2,
        &[
            "in kube-system there, in calico-system missing",
            "Next: The copy of the BGP password's Secret",
            "kubectl create -f -",
        ],
    );
    // Nobody is Ready yet, so it does not cure at once. What is left has another ladder, which this run does not climb.
    let ended = plant.run(&["--yes", "--no-evidence", "--wait", "2"])?;
    ended.is(2, &["copy-bgp-secret: done", "bgp-secret-access: not cured", "Next: A cordon is next"]);
    assert!(!format!("{}{}", ended.out, ended.err).contains("hunter2"), "{}{}", ended.out, ended.err);
    let copy = plant.bench.admin("GET /api/v1/namespaces/calico-system/secrets/calico-bgp-password", &Value::Null)?;
    assert!(
        copy["metadata"]["ownerReferences"].is_null() && copy["metadata"]["labels"].is_null(),
        "{}",
        copy["metadata"]
    );
    assert_eq!(copy["data"]["password"], "aHVudGVyMi1vZi1iZ3A=");
    let can = ["auth", "can-i", "get", "secret/calico-bgp-password", "-n", "calico-system", "--as"];
    let may = plant.bench.kubectl(&[&can[..], &["system:serviceaccount:calico-system:calico-node"]].concat())?;
    assert_eq!(may.trim(), "yes");
    let memory = plant.memory()?;
    assert_eq!((&memory["evidence"], &memory["cordoned"]), (&json!("declined"), &json!(false)));
    assert!(!plant.is_cordoned()?, "no worker is touched by it");
    let outcomes: Vec<&Value> =
        memory["steps"].as_array().context("steps")?.iter().map(|step| &step["outcome"]).collect();
    assert_eq!(outcomes, [&json!("done"), &json!("notCured")], "{}", ended.out);

    // No controller runs here that ends a namespace: it stays, without what was put into it.
    for command in [
        &["delete", "secret,role,rolebinding", "--all", "-n", "calico-system"][..],
        &["delete", "secret", "-n", "kube-system", "calico-bgp-password"],
        &["delete", "crd", "bgpconfigurations.crd.projectcalico.org"],
    ] {
        plant.bench.kubectl(command)?;
    }
    Ok(())
}
