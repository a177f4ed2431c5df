//! A pod that the kubelet should run from a file of its own does not run, or ends again and again.
//!
//! *Looks at* the manifests in the kubelet's `staticPodPath`, at the runtime's sandboxes, and in those of static pods at the
//! containers. No API server is between, so `kubectl` may show a mirror of a pod that is long gone, or nothing. *Traps*: most
//! workers have no such directory, or an empty one; a kubelet that has just started and a manifest that has just been put there
//! need a while, and an image may be long in coming; a pod that may end has ended; files that begin with a dot are not read;
//! while the kubelet is down nobody starts any, which is `KubeletDown`; one restart is not a loop (catalogue R044, R049).

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use super::super::{Area, Check, Finding, Look, Outcome, Severity, findings_or_unknown, seen};
use crate::facts::{Kubelet, Manifest, Program, Sandbox, StaticContainer, StaticPod};

pub(super) const CHECK: Check = Check {
    code: "StaticPodNotRunning",
    area: Area::ControlPlanePath,
    severity: Severity::Warning,
    why: "static pods are parts of the node itself, such as the proxy to the control plane: no scheduler puts them anywhere else, and the API server may show them as they were",
    next_step: "read what the kubelet says of it (`journalctl -u kubelet | grep FILE`) and correct the manifest, or copy it from another worker of the pool",
    // What the runtime has is asked for once a minute: it is seen twice.
    raise_after: Duration::from_secs(90),
    clear_after: Duration::from_secs(60),
    run,
};

/// An image may be pulled, or something be prepared, for so long.
const PREPARING: SignedDuration = SignedDuration::from_mins(10);
/// The kubelet waits 5 minutes at most between two starts, and forgets of them after 10 in which the container ran
/// (`MaxContainerBackOff` of `pkg/kubelet/kubelet.go`); and some seconds for the start itself.
const LOOPS: SignedDuration = SignedDuration::from_secs(620);
/// The first start and one restart are no loop.
const RESTARTS: u32 = 2;

fn run(look: &Look<'_>) -> Outcome {
    let kubelet = seen!(look.now.kubelet, Outcome::NotApplicable("this is no Kubernetes worker".into()));
    let none = || Outcome::NotApplicable(format!("the kubelet has no static pods in {}", kubelet.static_pods));
    let manifests = seen!(kubelet.manifests, none());
    if manifests.is_empty() {
        return none();
    }
    let processes = seen!(look.now.processes, Outcome::NotApplicable("no processes to look at".into()));
    let started = processes.of(Program::Kubelet).map(|process| process.started_at);
    let mut findings: Vec<Finding> = manifests.iter().filter_map(ignored).collect();
    let sandboxes = &look.now.runtime.sandboxes;
    for manifest in manifests {
        let Ok(pod) = manifest.pod.as_ref() else { continue };
        // What a kubelet that is down, or has just come, has not done yet.
        let begun = started.map(|started| started.max(manifest.modified));
        let settling = SignedDuration::from_secs(look.limits.static_pod_settling_seconds);
        let Some(begun) = begun.filter(|begun| look.now.taken_at.duration_since(*begun) > settling) else { continue };
        if let (true, Some(sandboxes)) = (pod.always, sandboxes.get()) {
            findings.extend(trouble(look, kubelet, manifest, pod, sandboxes, begun));
        }
    }
    findings_or_unknown(findings, sandboxes.error())
}

/// What the kubelet takes for a manifest and does not run. That something else lies there is worth knowing, and no more.
fn ignored(manifest: &Manifest) -> Option<Finding> {
    let why = manifest.pod.as_ref().err()?;
    let severity = if why.is_pod { Severity::Warning } else { Severity::Info };
    let detail = format!("The kubelet ignores {}: it {}", manifest.path, why.what);
    let step = if why.is_pod { "complete the manifest" } else { "move the file out of this directory" };
    let next = format!("{step}, or copy the right one from another worker of the pool");
    Some(Finding::new(manifest.path.clone(), detail).severity(severity).next(next))
}

/// What is wrong with a pod that should have run since it was begun.
fn trouble(
    look: &Look<'_>,
    kubelet: &Kubelet,
    manifest: &Manifest,
    pod: &StaticPod,
    sandboxes: &[Sandbox],
    begun: Timestamp,
) -> Option<Finding> {
    let name = format!("{}/{}", pod.namespace, pod.name);
    let says = format!("The static pod {name} of {} does not run", manifest.path);
    let node = kubelet.node_name.as_deref();
    let mut own = sandboxes.iter().filter(|sandbox| pod.is(&sandbox.namespace, &sandbox.name, node)).peekable();
    if own.peek().is_none() {
        let detail = format!("{says}: the runtime has had no sandbox for it since {begun:.0} at the latest");
        let file = manifest.path.rsplit('/').next().unwrap_or(&manifest.path);
        return Some(Finding::new(manifest.path.clone(), detail).next(CHECK.next_step.replace("FILE", file)));
    }
    // A sandbox that was not asked about yet says nothing.
    let told = &look.now.runtime.static_pods;
    let asked = own.filter_map(|own| Some((own, told.iter().find(|told| told.sandbox == own.id)?)));
    let faults: Vec<String> = asked
        .flat_map(|(sandbox, told)| pod.containers.iter().map(move |name| (sandbox, told, name)))
        .filter_map(|(sandbox, told, name)| {
            let of: Vec<&StaticContainer> = told.containers.iter().filter(|one| one.name == *name).collect();
            fault(look.now.taken_at, sandbox, name, &of)
        })
        .collect();
    if faults.is_empty() {
        return None;
    }
    let next = format!(
        "read what it says last (`crictl ps -a`, then `crictl logs` with its id; or /var/log/pods/{}_{}-*), and what the kubelet says of it (`journalctl -u kubelet`)",
        pod.namespace, pod.name
    );
    let detail = format!("{says} as it should: {}", faults.join("; "));
    Some(Finding::new(manifest.path.clone(), detail).next(next))
}

/// What is wrong with a container, of which these were made, the last one first.
fn fault(now: Timestamp, sandbox: &Sandbox, name: &str, made: &[&StaticContainer]) -> Option<String> {
    let [last, earlier @ ..] = made else {
        let since = at(sandbox.created_at)?;
        return (now.duration_since(since) > PREPARING).then(|| {
            format!("its container {name} has not been made since {since:.0}: its image is not there, or what has to end before it does not")
        });
    };
    let (began, before) = (at(last.created_at)?, earlier.first().and_then(|one| at(one.created_at)));
    let soon = before.is_some_and(|before| began.duration_since(before) <= LOOPS);
    // The kubelet removes all that have ended but one.
    let loops = if last.running { soon && now.duration_since(began) <= LOOPS } else { soon || before.is_none() };
    let state = if last.running { "and runs just now" } else { "and has ended" };
    (loops && last.attempt >= RESTARTS).then(|| {
        format!(
            "its container {name} ends again and again: it was started {} times, last at {began:.0}, {state}",
            last.attempt + 1
        )
    })
}

/// Of nanoseconds of the Unix epoch.
fn at(nanoseconds: i64) -> Option<Timestamp> {
    Timestamp::from_nanosecond(nanoseconds.into()).ok()
}

#[cfg(test)]
mod tests {
    use super::super::testing::{self, Node};
    use super::*;
    use crate::facts::{Ignored, Seen, StaticContainers};

    const FILE: &str = "/etc/kubernetes/manifests/haproxy.yaml";

    /// A worker with such manifests, put there an hour ago, as was the kubelet started.
    fn with(pods: &[Result<StaticPod, Ignored>]) -> Node {
        Node::worker().edit(|now| {
            let modified = now.taken_at - SignedDuration::from_mins(60);
            let file = |(number, pod): (usize, &Result<StaticPod, Ignored>)| Manifest {
                path: if number == 0 { FILE.into() } else { format!("/etc/kubernetes/manifests/{number}.yaml") },
                modified,
                pod: pod.clone(),
            };
            let Seen::Yes(kubelet) = &mut now.kubelet else { panic!("seen") };
            kubelet.manifests = Seen::Yes(pods.iter().enumerate().map(file).collect());
        })
    }

    fn haproxy() -> StaticPod {
        let (namespace, name) = ("kube-system".into(), "haproxy".into());
        StaticPod { namespace, name, containers: vec!["a".into(), "b".into()], always: true }
    }

    /// The pod's sandbox, made so many minutes ago, with containers: name, attempt, whether it runs, minutes since it was made.
    fn sandbox(node: Node, minutes: i64, containers: Option<&[(&str, u32, bool, i64)]>) -> Node {
        node.edit(|now| {
            let ago = |minutes| (now.taken_at - SignedDuration::from_mins(minutes)).as_nanosecond();
            let ago = |minutes| i64::try_from(ago(minutes)).expect("this century");
            let Seen::Yes(sandboxes) = &mut now.runtime.sandboxes else { panic!("seen") };
            let (id, namespace, name) = ("static".to_owned(), "kube-system".to_owned(), "haproxy-n1".to_owned());
            let (host_network, addresses) = (Some(true), vec![]);
            let created_at = ago(minutes);
            sandboxes.push(Sandbox { id: id.clone(), namespace, name, created_at, host_network, addresses });
            let container = |&(name, attempt, running, made): &(&str, u32, bool, i64)| StaticContainer {
                name: name.to_owned(),
                attempt,
                running,
                created_at: ago(made),
            };
            let containers = containers.map(|all| all.iter().map(container).collect());
            now.runtime.static_pods.extend(containers.map(|containers| StaticContainers { sandbox: id, containers }));
        })
    }

    fn of(containers: &[(&str, u32, bool, i64)]) -> Outcome {
        run(&sandbox(with(&[Ok(haproxy())]), 59, Some(containers)).look())
    }

    #[test]
    fn a_manifest_that_nobody_runs() {
        let outcome = run(&with(&[Ok(haproxy())]).look());
        assert_eq!(testing::subjects(&outcome), [FILE]);
        assert_eq!(
            testing::details(&outcome),
            [
                "The static pod kube-system/haproxy of /etc/kubernetes/manifests/haproxy.yaml does not run: the runtime has had no sandbox for it since 2023-11-14T21:13:20Z at the latest"
            ]
        );
        let Outcome::Findings(findings) = outcome else { unreachable!() };
        assert!(findings[0].next_step.as_ref().is_some_and(|step| step.contains("grep haproxy.yaml`")), "{findings:?}");
        let other = sandbox(with(&[Ok(StaticPod { name: "ha".into(), ..haproxy() })]), 59, None);
        assert!(testing::details(&run(&other.look()))[0].contains("kube-system/ha of"), "another pod's sandbox");
    }

    #[test]
    fn a_container_that_ends_again_and_again() {
        for (containers, words) in [
            (&[("a", 11, false, 4), ("b", 0, true, 59)][..], "a ends again and again: it was started 12 times"),
            (&[("a", 11, true, 1), ("a", 10, false, 6), ("b", 0, true, 59)], "and runs just now"),
            (&[("a", 0, true, 59), ("b", 2, false, 1), ("b", 1, false, 2)], "container b ends"),
        ] {
            let details = testing::details(&of(containers));
            assert!(details.len() == 1 && details[0].contains(words), "{words}: {details:?}");
        }
    }

    #[test]
    fn a_container_that_is_never_made() {
        let details = testing::details(&of(&[("a", 0, true, 59)]));
        assert!(details[0].contains("its container b has not been made since 2023-11-14T21:14:20Z"), "{details:?}");
    }

    #[test]
    fn what_the_kubelet_ignores() {
        let not = Ignored { is_pod: false, what: "holds a ConfigMap, and is not a Pod".into() };
        let incomplete = Ignored { is_pod: true, what: "holds a Pod without a name".into() };
        let Outcome::Findings(told) = run(&with(&[Err(not), Err(incomplete)]).look()) else { panic!("findings") };
        let severities: Vec<_> = told.iter().map(|one| one.severity).collect();
        assert_eq!(severities, [Some(Severity::Warning), Some(Severity::Info)]);
        assert_eq!(told[1].detail, format!("The kubelet ignores {FILE}: it holds a ConfigMap, and is not a Pod"));
    }

    #[test]
    fn healthy_and_clears() {
        assert_eq!(of(&[("a", 0, true, 59), ("b", 0, true, 59)]), Outcome::Healthy);
        assert_eq!(of(&[("a", 11, true, 11), ("a", 10, false, 16), ("b", 0, true, 59)]), Outcome::Healthy, "it stays");
    }

    #[test]
    fn trap_no_directory_no_files_and_no_worker() {
        let nodes: [fn() -> Node; 3] = [Node::worker, || with(&[]), Node::plain_machine];
        for node in nodes {
            assert!(matches!(run(&node().look()), Outcome::NotApplicable(_)));
        }
    }

    #[test]
    fn trap_a_kubelet_that_has_just_started_or_is_down_and_a_manifest_that_was_just_written() {
        let node = || with(&[Ok(haproxy())]);
        assert_eq!(run(&node().kubelet_started_ago(170).look()), Outcome::Healthy);
        assert_eq!(run(&node().without(Program::Kubelet).look()), Outcome::Healthy);
        let fresh = node().edit(|now| {
            let Seen::Yes(kubelet) = &mut now.kubelet else { panic!("seen") };
            let Seen::Yes(manifests) = &mut kubelet.manifests else { panic!("seen") };
            manifests[0].modified = now.taken_at - SignedDuration::from_secs(100);
        });
        assert_eq!(run(&fresh.look()), Outcome::Healthy);
        assert_eq!(testing::subjects(&run(&node().kubelet_started_ago(190).look())), [FILE]);
    }

    #[test]
    fn trap_an_image_that_is_being_pulled_and_a_sandbox_that_was_not_asked_about() {
        let begun = |minutes, containers| sandbox(with(&[Ok(haproxy())]), minutes, containers);
        assert_eq!(run(&begun(9, Some(&[])).look()), Outcome::Healthy);
        assert_eq!(run(&begun(59, None).look()), Outcome::Healthy);
        assert_eq!(testing::subjects(&run(&begun(11, Some(&[])).look())), [FILE]);
    }

    #[test]
    fn trap_one_restart_an_old_restart_and_a_pod_that_may_end() {
        assert_eq!(of(&[("a", 1, false, 1), ("a", 0, false, 2), ("b", 0, true, 59)]), Outcome::Healthy);
        assert_eq!(of(&[("a", 7, true, 1), ("a", 6, false, 50), ("b", 0, true, 59)]), Outcome::Healthy);
        assert_eq!(of(&[("a", 7, false, 30), ("a", 6, false, 50), ("b", 0, true, 59)]), Outcome::Healthy);
        assert_eq!(run(&with(&[Ok(StaticPod { always: false, ..haproxy() })]).look()), Outcome::Healthy);
    }

    #[test]
    fn unknown_when_the_directory_the_runtime_or_the_processes_cannot_be_seen() {
        let unreadable = Node::worker().edit(|now| {
            let Seen::Yes(kubelet) = &mut now.kubelet else { panic!("seen") };
            kubelet.manifests = testing::denied("/etc/kubernetes/manifests");
        });
        let mute = with(&[Ok(haproxy())]).edit(|now| now.runtime.sandboxes = testing::timed_out("CRI"));
        let unseen = with(&[Ok(haproxy())]).edit(|now| now.processes = testing::denied("/proc"));
        let unknown = |node: &Node| matches!(run(&node.look()), Outcome::Unknown(_));
        assert!(unknown(&unreadable) && unknown(&mute) && unknown(&unseen));
    }
}
