use clap::Parser;
use jiff::Timestamp;
use serde_json::json;

use super::*;

#[derive(Debug, Parser)]
struct Line {
    #[command(flatten)]
    options: Options,
}

fn options(more: &[&str]) -> Options {
    Line::parse_from([&["uninstall"], more].concat()).options
}

/// The Pod of `deploy/agent.yaml`.
fn agent() -> Value {
    let set: Value = crate::yaml::parse(include_str!("../../../deploy/agent.yaml")).expect("YAML");
    set["spec"]["template"]["spec"].clone()
}

fn pod(spec: Value, more: &[&str]) -> Value {
    Template::of(spec, "", &options(more))
        .pod("n1", Timestamp::from_second(1_700_000_000).expect("valid"))
        .expect("a Pod")
}

#[test]
fn the_pod_that_erases_runs_where_the_agent_ran_and_has_no_more_rights() {
    let (agent, pod) = (agent(), pod(agent(), &[]));
    let spec = &pod["spec"];
    for same in ["tolerations", "hostNetwork", "dnsPolicy", "serviceAccountName", "priorityClassName"] {
        assert!(!spec[same].is_null() && spec[same] == agent[same], "{same}: {}", spec[same]);
    }
    assert_eq!((&spec["nodeName"], &spec["restartPolicy"]), (&json!("n1"), &json!("Never")));
    assert_eq!(spec["automountServiceAccountToken"], false, "it asks nobody anything");
    let container = &spec["containers"][0];
    assert_eq!((&container["image"], &container["imagePullPolicy"]), (&json!("nodevitals"), &json!("IfNotPresent")));
    assert_eq!(container["args"], json!(["erase", "/node/nodevitals", "--until", "2023-11-14T22:16:20Z"]));
    let security = &container["securityContext"];
    assert_eq!(security["capabilities"], json!({"drop": ["ALL"]}));
    for (key, value) in [("privileged", false), ("allowPrivilegeEscalation", false), ("readOnlyRootFilesystem", true)] {
        assert_eq!(security[key], value, "{key}");
    }
    // One directory of the node, and that is the one above.
    assert_eq!(spec["volumes"], json!([{"name": "parent", "hostPath": {"path": "/var/lib", "type": "Directory"}}]));
    assert_eq!(container["volumeMounts"], json!([{"name": "parent", "mountPath": "/node"}]));
    // Nobody takes it for an agent, or the next call would wait for it.
    assert_eq!(pod["metadata"]["labels"]["app.kubernetes.io/component"], "uninstall");
}

#[test]
fn it_is_made_as_the_cluster_makes_the_agents() {
    let mut own = agent();
    own["containers"][0]["image"] = json!("registry.example/nodevitals:1");
    own["imagePullSecrets"] = json!([{"name": "pull"}]);
    own["containers"][0]["securityContext"]["seLinuxOptions"] = json!({"type": "spc_t"});
    let volumes = own["volumes"].as_array_mut().expect("a list");
    volumes.iter_mut().find(|it| it["name"] == "state").expect("the state")["hostPath"]["path"] = json!("/data/vitals");
    let made = pod(own.clone(), &[]);
    let container = &made["spec"]["containers"][0];
    assert_eq!(container["image"], "registry.example/nodevitals:1");
    assert_eq!(made["spec"]["imagePullSecrets"], json!([{"name": "pull"}]));
    assert_eq!(container["securityContext"]["seLinuxOptions"], json!({"type": "spc_t"}));
    assert_eq!(
        (&container["args"][1], &made["spec"]["volumes"][0]["hostPath"]["path"]),
        (&json!("/node/vitals"), &json!("/data"))
    );
    let said = pod(own, &["--image", "other", "--state-dir", "/srv/kept/state"]);
    assert_eq!(said["spec"]["containers"][0]["image"], "other");
    assert_eq!(said["spec"]["volumes"][0]["hostPath"]["path"], "/srv/kept");
    // Where nothing is left of the product but what is on the nodes.
    let bare = Template::of(Value::Null, "404: not found", &options(&[]));
    let why = bare.pod("n1", Timestamp::UNIX_EPOCH).expect_err("no image");
    assert!(why.contains("--image") && why.contains("404: not found"), "{why}");
    assert_eq!(bare.by_hand("n1"), "kubectl debug node/n1 -it --image=busybox -- rm -r /host/var/lib/nodevitals");
}

#[test]
fn only_a_directory_of_the_agents_own_is_erased() {
    for good in ["/var/lib/nodevitals", "/data/node-vitals_1"] {
        assert_eq!(template::state_dir(good).as_deref(), Ok(good));
    }
    for bad in [
        "",
        "/",
        "/var",
        "var/lib/x",
        "/var/../etc",
        "/var/lib/",
        "/var//lib",
        "/var/./x",
        "/var/a b",
        "/var/$(x)",
        "/var/-rf",
    ] {
        assert!(template::state_dir(bad).is_err(), "{bad}");
    }
    // Nor what somebody wrote into the DaemonSet.
    let odd = json!({"containers": [{"image": "x"}], "volumes": [{"name": "state", "hostPath": {"path": "/"}}]});
    assert_eq!(Template::of(odd, "", &options(&[])).directory(), STATE_DIR);
}

#[test]
fn what_is_left_is_named_with_why_and_the_command() {
    let left = Left { node: "n2".into(), why: "no room\u{1b}[2J".into(), command: "kubectl debug node/n2".into() };
    let done = Done {
        cleaned: vec!["n1".into()],
        clean: vec!["n2".into(), "n3".into()],
        directory: STATE_DIR.into(),
        erased: vec!["n1".into(), "n3".into()],
        left: vec![left],
        ..Done::default()
    };
    let text = done.text();
    for part in [
        "1 of 3 nodes had conditions",
        "/var/lib/nodevitals, where the agents kept state, journal and evidence, is gone from 2 nodes\n",
        "left on 1 nodes",
        "\n  n2: no room",
        "\n    kubectl debug node/n2\n",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert!(!text.contains('\u{1b}'), "{text:?}");
    let would = Done { dry_run: true, left: Vec::new(), ..done }.text();
    assert!(would.contains("1 of 3 nodes have") && would.contains("would be erased on 2 nodes"), "{would}");
    let kept = Done { kept: vec!["n1".into()], directory: STATE_DIR.into(), ..Done::default() }.text();
    assert!(kept.contains("stays in /var/lib/nodevitals on 1 nodes (--keep-evidence)"), "{kept}");
}
