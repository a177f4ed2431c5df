//! Recorded faults as they come and go under a running agent: what it raises, in which order, and that it clears; and
//! that a routine update, seen from beginning to end, raises nothing.

use std::fs;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;

use super::{Api, Node, Recording, cluster, codes, headline};
use crate::support::wait::within;

/// Longer than the longest hold-down of the faults below, two minutes of a session that is down, on a busy machine.
const SOON: Duration = Duration::from_secs(240);

/// The process is stopped for so long: longer than each hold-down of what is seen here, and than the patience of Kubernetes with a
/// node that says nothing (40 s, 50 s since 1.32).
const MINUTES: Duration = Duration::from_secs(125);

/// Codes of findings, root first.
type Codes = &'static [&'static str];

/// A worker before the fault, and the agent that follows it, which has the map of its cluster.
fn followed(incident: &str, name: &str) -> Result<(Node, Api)> {
    followed_holding(incident, name, &[])
}

/// The same with an agent that holds these down for longer than is waited here: their own hold-downs may be over before
/// the others are raised.
fn followed_holding(incident: &str, name: &str, held: Codes) -> Result<(Node, Api)> {
    let node = Node::recorded(incident, "before", name)?;
    if !held.is_empty() {
        let file = node.path("logs/nodevitals.yaml");
        let config = fs::read_to_string(&file)?;
        ensure!(!config.contains("holdDownSeconds"), "a second key: {config}");
        let held: Vec<String> = held.iter().map(|code| format!("{code}: 600")).collect();
        fs::write(&file, format!("{config}holdDownSeconds: {{{}}}\n", held.join(", ")))?;
    }
    let api = node.follow(&cluster(incident, name)?)?;
    Ok((node, api))
}

/// What is raised, root first, and what is seen and held down, in order of their names.
fn told(node: &Node) -> Result<(Vec<String>, Vec<String>)> {
    let verdict = node.verdict()?;
    let mut held = codes(&verdict["pending"]);
    held.sort();
    Ok((codes(&verdict["findings"]), held))
}

/// The verdict of this moment, if it is these findings that are raised, root first, and these that are held down.
pub(super) fn told_are(node: &Node, raised: &[&str], held: &[&str]) -> Result<Value> {
    let verdict = node.verdict()?;
    let mut seen = codes(&verdict["pending"]);
    seen.sort();
    let told = (codes(&verdict["findings"]), seen);
    ensure!(told.0 == raised && told.1 == held, "raised and held: {told:?}");
    Ok(verdict)
}

/// The headline of this moment, if there is one.
fn headline_now(node: &Node) -> Result<Option<String>> {
    let conditions = node.verdict()?["conditions"].take();
    let roll_up = conditions.as_array().into_iter().flatten().find(|it| it["kind"] == "WorkerProblem");
    let problem = roll_up.context("the roll-up")?;
    Ok((problem["status"] == "True").then(|| problem["reason"].as_str().unwrap_or_default().to_owned()))
}

/// Lets a fault come and go: these findings are raised, root first, these others are seen and held down, and nothing else;
/// all of them are cleared again, and nothing else ever is raised. From the first moment the root has the headline.
fn comes_and_goes(incident: &str, name: &str, fault: &str, raised: Codes, held: Codes) -> Result<()> {
    let (mut node, _api) = followed_holding(incident, name, held)?;
    node.become_(&Recording::read(incident, fault, name)?)?;
    let mut headlines: Vec<String> = Vec::new();
    within(SOON, || {
        headlines.extend(headline_now(&node)?);
        let verdict = told_are(&node, raised, held)?;
        raised.first().map_or(Ok(()), |root| headline(&verdict["conditions"], root))
    })
    .context("it is told")?;
    let others: Vec<&String> = headlines.iter().filter(|it| raised.first() != Some(&it.as_str())).collect();
    ensure!(others.is_empty(), "these had the headline first: {others:?}");
    node.become_(&Recording::read(incident, "before", name)?)?;
    within(SOON, || told_are(&node, &[], &[])).context("it is cleared")?;
    node.ever_raised_are(raised)
}

macro_rules! come_and_go {
    ($($(#[$about:meta])* $name:ident: $incident:literal $fault:literal $node:literal => $raised:expr, $held:expr;)*) => {$(
        $(#[$about])*
        #[test]
        fn $name() -> Result<()> {
            comes_and_goes($incident, $node, $fault, &$raised, &$held)
        }
    )*};
}

come_and_go! {
    a_bird_that_hangs: "02-bird-stopped" "during-stopped" "n2" => ["BgpDaemonDown"], [];
    a_bird_that_hangs_for_long: "02-bird-stopped" "during-stopped-late" "n2" => ["BgpDaemonDown"], [];
    a_bird_that_was_killed: "02-bird-stopped" "during-killed" "n2" => ["BgpDaemonDown"], [];
    a_bird_that_was_killed_long_ago: "02-bird-stopped" "during-killed-late" "n2" => [], ["BgpDaemonDown"];
    a_peer_whose_bird_was_killed: "02-bird-stopped" "during-killed" "n1" => [], ["BgpSessionDown"];
    a_peer_whose_bird_was_killed_long_ago: "02-bird-stopped" "during-killed-late" "n1"
        => [], ["BgpSessionDown", "RemoteBlockRouteMissing"];
    a_peer_whose_bird_hangs: "02-bird-stopped" "during-stopped-late" "n1"
        => ["BgpSessionDown", "RemoteBlockRouteMissing"], [];
    jumps_of_a_dead_felix_deleted: "04-felix-stopped" "during-b-dead-and-jumps-gone" "n1" => ["CalicoChainsUnhooked"], [];
    jumps_of_a_dead_kube_proxy_deleted: "05-kube-proxy-stopped" "during-b-jumps-gone" "n2"
        => ["KubeProxyChainsUnhooked"], ["KubeProxyDown", "MasterClusterIpUnreachable"];
    nat_flushed_with_kube_proxy_dead: "05-kube-proxy-stopped" "during-c-nat-flushed" "n2"
        => ["TablesFlushed", "KubeProxyChainsMissing"], ["CalicoChainsMissing", "KubeProxyDown", "MasterClusterIpUnreachable"];
    /// The kubelet's canary has not come back since nat was flushed a minute before.
    jumps_of_a_live_kube_proxy_deleted: "05-kube-proxy-stopped" "during-d-alive-jumps-gone" "n2"
        => ["KubeProxyChainsUnhooked", "TablesFlushed"], ["MasterClusterIpUnreachable"];
    nat_flushed_with_kube_proxy_alive: "05-kube-proxy-stopped" "during-e-alive-nat-flushed" "n2"
        => ["TablesFlushed", "KubeProxyChainsMissing"], ["CalicoChainsMissing", "MasterClusterIpUnreachable"];
    a_missing_cni_configuration: "06-cni-config-missing" "during-a-missing" "n2"
        => ["CniConfigMissing"], ["CniNotInitialized"];
    half_a_cni_configuration: "06-cni-config-missing" "during-b-invalid-json" "n2"
        => ["CniConfigInvalid"], ["CniNotInitialized"];
    a_missing_cni_plugin: "06-cni-config-missing" "during-c-no-plugin" "n2" => ["CniBinaryMissing"], [];
    a_stray_cni_configuration: "06-cni-config-missing" "during-d-stray-conf" "n2" => ["CniConfigConflict"], [];
    a_hung_containerd: "08-containerd-hung" "during-a-hung-20s" "n3" => ["ContainerdUnresponsive"], [];
    a_dead_containerd: "08-containerd-hung" "during-b-killed" "n3" => ["ContainerdDown"], [];
    the_route_of_a_pod_with_felix_dead: "11-pod-route-missing" "during-b-felix-dead" "n1" => ["PodRouteMissing"], [];
    the_link_of_a_pod_down: "11-pod-route-missing" "during-d-link-down" "n1" => [], ["PodRouteMissing"];
    a_legacy_policy_that_drops: "17-mixed-backends" "during-a-legacy-rules" "n2"
        => ["ForwardPolicyDrop"], ["IptablesBackendSplit"];
    a_legacy_policy_that_drops_while_felix_restarts: "17-mixed-backends" "during-b-felix-restarted" "n2"
        => ["ForwardPolicyDrop"], ["IptablesBackendSplit"];
    a_legacy_policy_that_drops_and_hints_in_legacy: "17-mixed-backends" "during-c-hint-in-legacy" "n2"
        => ["ForwardPolicyDrop", "TablesFlushed"], ["IptablesBackendSplit"];
}

/// On the recorded node the left-over translation did no harm: nf_tables decided.
#[test]
fn a_stale_service_in_the_backend_that_decides() -> Result<()> {
    const ROOT: &str = "IptablesBackendSplit";
    const RAISED: Codes = &["ForwardPolicyDrop", ROOT, "MasterClusterIpUnreachable"];
    let before = Recording::read("17-mixed-backends", "before", "n2")?;
    let mut node = Node::empty("n2")?;
    node.legacy_decides = true;
    node.become_(&before)?;
    let _api = node.follow(&cluster("17-mixed-backends", "n2")?)?;
    node.become_(&Recording::read("17-mixed-backends", "during-a-legacy-rules", "n2")?)?;
    let verdict = within(SOON, || told_are(&node, RAISED, &[]))?;
    // A policy that drops is a fault of its own.
    let service = verdict["findings"].as_array().into_iter().flatten().find(|it| it["code"] == RAISED[2]);
    ensure!(service.is_some_and(|it| it["causedBy"]["code"] == ROOT), "{service:?}");
    node.become_(&before)?;
    within(SOON, || told_are(&node, &[], &[])).map(drop)
}

/// Lets a worker go through these phases: nothing is ever seen that would be raised if it lasted, and nothing was hidden.
fn stays_quiet(incident: &str, name: &str, phases: &[&str]) -> Result<()> {
    let (mut node, _api) = followed(incident, name)?;
    for phase in [&["before"], phases].concat() {
        node.become_(&Recording::read(incident, phase, name)?)?;
        // Longer than it takes to look at everything again.
        sleep(Duration::from_secs(8));
        // One late answer at this moment is no fault; what was raised meanwhile is looked at below.
        within(Duration::from_secs(40), || {
            let (told, unknown) = (told(&node)?, node.verdict()?["unknown"].take());
            ensure!(told.0.is_empty() && told.1.is_empty(), "{phase}: raised and held: {told:?}");
            ensure!(unknown == serde_json::json!([]), "{phase}: could not look: {unknown}");
            Ok(())
        })?;
    }
    node.ever_raised_are(&[])
}

#[test]
fn healthy_workers() -> Result<()> {
    ["n1", "n2", "n3"].into_iter().try_for_each(|name| stays_quiet("01-healthy", name, &[]))
}

/// Chains, jumps and routes stay as they were, and that Felix does not answer is its own probes' to tell.
#[test]
fn a_felix_that_hangs_and_is_dead() -> Result<()> {
    stays_quiet("04-felix-stopped", "n1", &["during-a1-felix-hung", "during-a2-felix-dead", "after"])
}

/// Felix lives, but does not look into pods: nothing is waited for.
#[test]
fn the_end_of_a_link_inside_a_pod() -> Result<()> {
    let (node, _api) = followed("11-pod-route-missing", "n1")?;
    node.set_inside("cali415c2f8ba99", "down")?;
    within(SOON, || {
        let verdict = node.verdict()?;
        ensure!(codes(&verdict["findings"]) == ["PodRouteMissing"], "{verdict}");
        ensure!(verdict["findings"][0].to_string().contains("cali415c2f8ba99, which has no carrier"), "{verdict}");
        Ok(())
    })
    .context("it is raised")?;
    node.set_inside("cali415c2f8ba99", "up")?;
    within(SOON, || {
        ensure!(node.codes()?.is_empty(), "{}", node.verdict()?);
        Ok(())
    })
    .context("it is cleared")?;
    Ok(())
}

/// Lets a fault come and go before its hold-down ends: it is seen, and nothing is raised.
fn is_seen_and_held(incident: &str, name: &str, fault: &str, expected: &str) -> Result<()> {
    let before = Recording::read(incident, "before", name)?;
    let (mut node, _api) = followed(incident, name)?;
    node.become_(&Recording::read(incident, fault, name)?)?;
    within(SOON, || {
        let pending = codes(&node.verdict()?["pending"]);
        ensure!(pending == [expected], "{pending:?}");
        Ok(())
    })
    .context("it is seen")?;
    // Long enough to outlast the hold-down of what nobody repairs.
    sleep(Duration::from_secs(4));
    node.become_(&before)?;
    within(SOON, || {
        ensure!(codes(&node.verdict()?["pending"]).is_empty(), "{}", node.verdict()?);
        Ok(())
    })
    .context("it is over")?;
    ensure!(node.ever_raised()?.is_empty(), "{:#?}", node.ever_raised()?);
    Ok(())
}

#[test]
fn what_a_live_felix_repairs_is_seen_and_held() -> Result<()> {
    is_seen_and_held("04-felix-stopped", "n1", "during-c-alive-jumps-gone", "CalicoChainsUnhooked")
}

#[test]
fn a_kube_proxy_that_may_come_back_is_seen_and_held() -> Result<()> {
    is_seen_and_held("05-kube-proxy-stopped", "n2", "during-a-stopped", "KubeProxyDown")
}

#[test]
fn a_rolling_restart_of_calico_is_silent() -> Result<()> {
    let incident = "18-rolling-restart";
    let (mut node, _api) = followed(incident, "n2")?;
    // BIRD and Felix were away for 7.5 s on this node.
    for (phase, seconds) in [("during-n2", 7), ("after-rolling", 1), ("during-slow-n2", 7), ("after", 2)] {
        node.become_(&Recording::read(incident, phase, "n2")?)?;
        sleep(Duration::from_secs(seconds));
    }
    ensure!(node.ever_raised()?.is_empty(), "{:#?}", node.ever_raised()?);
    ensure!(node.verdict()?["state"] == "Normal", "{}", node.verdict()?);
    Ok(())
}

/// Stops the process for longer than any hold-down here, while something is done.
fn paused(node: &mut Node, meanwhile: impl FnOnce(&mut Node) -> Result<()>) -> Result<()> {
    node.host.signal("nodevitals", Signal::SIGSTOP)?;
    meanwhile(node)?;
    // A time in which nobody looks has to pass.
    sleep(Duration::from_secs(12));
    node.host.signal("nodevitals", Signal::SIGCONT)?;
    Ok(())
}

/// A process that was stopped takes nothing for having lasted, or for being over, that it did not see.
#[test]
fn a_pause_is_no_transition() -> Result<()> {
    let (incident, hangs) = ("02-bird-stopped", "during-stopped");
    let (before, during) = (Recording::read(incident, "before", "n2")?, Recording::read(incident, hangs, "n2")?);
    let (mut node, _api) = followed(incident, "n2")?;
    paused(&mut node, |_| Ok(()))?;
    // What was seen for a moment before the pause, and is gone after it.
    node.become_(&during)?;
    within(SOON, || {
        ensure!(codes(&node.verdict()?["pending"]) == ["BgpDaemonDown"], "{}", node.verdict()?);
        Ok(())
    })
    .context("it is seen")?;
    paused(&mut node, |node| node.become_(&before))?;
    within(SOON, || {
        let verdict = node.verdict()?;
        ensure!(codes(&verdict["pending"]).is_empty() && verdict["state"] == "Normal", "{verdict}");
        Ok(())
    })
    .context("it is over")?;
    // Longer than the hold-down of what would have been seen last.
    sleep(Duration::from_secs(6));
    ensure!(node.ever_raised()?.is_empty(), "{:#?}", node.ever_raised()?);
    // What counts goes on counting, and is told as one.
    node.become_(&during)?;
    within(SOON, || {
        ensure!(node.codes()? == ["BgpDaemonDown"], "{}", node.verdict()?);
        Ok(())
    })
    .context("it is raised")?;
    let since = node.verdict()?["findings"][0]["since"].clone();
    paused(&mut node, |_| Ok(()))?;
    sleep(Duration::from_secs(6));
    let findings = node.verdict()?["findings"].clone();
    ensure!(codes(&findings) == ["BgpDaemonDown"] && findings[0]["since"] == since, "{findings}");
    ensure!(node.ever_raised()?.len() == 1, "{:#?}", node.ever_raised()?);
    Ok(())
}

/// What the Node shows: each condition with its status, its reason and since when.
fn on_the_node(api: &Api) -> Result<Vec<[String; 4]>> {
    let node = api.node();
    let text = |it: &Value, key: &str| -> Result<String> { Ok(it[key].as_str().context("text")?.to_owned()) };
    let told =
        |it: &Value| Ok([text(it, "type")?, text(it, "status")?, text(it, "reason")?, text(it, "lastTransitionTime")?]);
    let mut conditions: Vec<[String; 4]> =
        node["status"]["conditions"].as_array().context("conditions")?.iter().map(told).collect::<Result<_>>()?;
    conditions.sort();
    ensure!(conditions.len() == 8, "{conditions:#?}");
    Ok(conditions)
}

/// Two minutes without the process, as a debugger, a freezer of cgroups or a hypervisor makes them: what was about to count when
/// it was stopped and is gone when it goes on was no transition, and what counted goes on counting since it began.
#[test]
fn a_pause_of_minutes_is_no_transition() -> Result<()> {
    let (incident, hangs) = ("02-bird-stopped", "during-stopped");
    let (before, during) = (Recording::read(incident, "before", "n2")?, Recording::read(incident, hangs, "n2")?);
    let ((mut well, of_well), (mut ill, of_ill)) = (followed(incident, "n2")?, followed(incident, "n2")?);
    ill.become_(&during)?;
    within(SOON, || {
        ensure!(ill.codes()? == ["BgpDaemonDown"], "{}", ill.verdict()?);
        let told = on_the_node(&of_ill)?;
        ensure!(told.iter().any(|it| it[1] == "True" && it[2] == "BgpDaemonDown"), "{told:#?}");
        Ok(())
    })
    .context("it is raised, and on its Node")?;
    within(SOON, || {
        let told = on_the_node(&of_well)?;
        ensure!(told.iter().all(|it| it[1] == "False"), "{told:#?}");
        Ok(())
    })
    .context("the other is well, and its Node says so")?;
    let since = ill.verdict()?["findings"][0]["since"].clone();
    let told = (on_the_node(&of_well)?, on_the_node(&of_ill)?);
    well.become_(&during)?;
    within(SOON, || {
        ensure!(codes(&well.verdict()?["pending"]) == ["BgpDaemonDown"], "{}", well.verdict()?);
        Ok(())
    })
    .context("it is seen")?;

    for node in [&well, &ill] {
        node.host.signal("nodevitals", Signal::SIGSTOP)?;
    }
    well.become_(&before)?;
    // A time in which nobody looks has to pass.
    sleep(MINUTES);
    for node in [&well, &ill] {
        node.host.signal("nodevitals", Signal::SIGCONT)?;
    }

    for node in [&well, &ill] {
        within(SOON, || {
            let log = fs::read_to_string(node.host.log("nodevitals"))?;
            ensure!(log.contains("was paused or suspended"), "{log}");
            Ok(())
        })
        .context("it notices that it was away")?;
    }
    within(SOON, || {
        let verdict = well.verdict()?;
        ensure!(codes(&verdict["pending"]).is_empty() && verdict["state"] == "Normal", "{verdict}");
        Ok(())
    })
    .context("it is over")?;
    // Longer than the hold-down of what would have been seen last.
    sleep(Duration::from_secs(6));
    ensure!(well.ever_raised()?.is_empty(), "{:#?}", well.ever_raised()?);
    let findings = ill.verdict()?["findings"].clone();
    ensure!(codes(&findings) == ["BgpDaemonDown"] && findings[0]["since"] == since, "{findings}");
    ensure!(ill.ever_raised()?.len() == 1, "{:#?}", ill.ever_raised()?);
    let now = (on_the_node(&of_well)?, on_the_node(&of_ill)?);
    ensure!(now == told, "before: {told:#?}, after: {now:#?}");
    Ok(())
}
