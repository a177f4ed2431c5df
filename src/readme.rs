//! Keeps the table of findings in the README in step with the table of checks.

use std::fmt::Write as _;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::checks::node::ALL;
use crate::config::Config;
use crate::config::ranges::{RANGES, number};
use crate::verdict::{
    CURED_BY_A_NEW_MACHINE, FLAPPING_FREE, FLAPPING_WINDOW, Patience, SLOWEST_CLEAR, Status, our_condition,
};

const README: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/README.md");
const BEGIN: &str = "<!-- findings: written by `NODEVITALS_BLESS=1 cargo test --lib readme` -->\n";
const END: &str = "<!-- end of findings -->";

fn table() -> String {
    let mut text = String::from(
        "| code | condition | severity | raised after | cleared after | why it matters |\n|---|---|---|---|---|---|\n",
    );
    for check in ALL {
        let (condition, severity) = (check.area.condition(), check.severity.as_str());
        let (raised, cleared) = (seconds(check.raise_after), seconds(check.clear_after));
        writeln!(text, "| `{}` | `{condition}` | {severity} | {raised} | {cleared} | {} |", check.code, check.why)
            .expect("memory");
    }
    let patience = Patience::default();
    writeln!(
        text,
        "\nWhat comes back more than {FLAPPING_FREE} times within {} is over only after twice as long each time, up to\n{}: \
         nothing flaps faster. A finding becomes worse after *raised after*, milder after *cleared after*.\nFor {} after a node \
         has booted or joined, or until its first clean pass, what its network misses is told as `WorkerSettling` and raises\nno alarm.",
        seconds(FLAPPING_WINDOW),
        seconds(SLOWEST_CLEAR),
        seconds(patience.settling),
    )
    .expect("memory");
    text
}

fn seconds(time: Duration) -> String {
    format!("{} s", time.as_secs_f32())
}

#[test]
fn the_table_of_findings_is_that_of_the_checks() {
    is_written(BEGIN, END, &table());
}

/// Holds the README to have this between two marks, or writes it there. The tests run one after the other for that.
fn is_written(begin: &str, end: &str, text: &str) {
    static ONE: Mutex<()> = Mutex::new(());
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let readme = std::fs::read_to_string(README).expect("README.md");
    let (before, rest) = readme.split_once(begin).expect("the mark before the table");
    let (_, after) = rest.split_once(end).expect("the mark after the table");
    let fresh = format!("{before}{begin}{text}{end}{after}");
    if std::env::var_os("NODEVITALS_BLESS").is_some() {
        std::fs::write(README, &fresh).expect("README.md can be written");
    } else {
        assert!(readme == fresh, "run `NODEVITALS_BLESS=1 cargo test --lib readme` and look at the difference");
    }
}

/// What each number of the configuration means, in the order of the ranges.
const MEANINGS: &[(&str, &str)] = &[
    ("limits.conntrackNearFullPercent", "`ConntrackNearFull`: entries, of `nf_conntrack_max`"),
    ("limits.conntrackFullPercent", "`ConntrackFull`: the same"),
    (
        "limits.imminentPoints",
        "the `...Imminent` codes: percent of the capacity above the kubelet's eviction threshold",
    ),
    ("limits.imminentMinutes", "the same: or so many minutes away from it at the present rate"),
    ("limits.fullPercent", "the same, `DiskFull`, `InodesExhausted`: what is left where the kubelet has no threshold"),
    ("limits.sandboxSettlingSeconds", "`PodRouteMissing`: a younger Pod need not have its route yet"),
    (
        "limits.staticPodSettlingSeconds",
        "`StaticPodNotRunning`: after the kubelet started or its manifest was written, a Pod may take so long",
    ),
    ("limits.ephemeralPortsPercent", "`EphemeralPortsNearFull`: of the local ports, held by one destination"),
    ("limits.abandonedContainers", "`RuntimeObjectLeak`: ended containers whose Pod is gone"),
    (
        "limits.abandonedObjects",
        "`RuntimeObjectLeak`: shims, sandboxes, snapshots, network namespaces and links without a Pod",
    ),
    ("limits.kubeletRestarts", "`KubeletRestarting`: restarts of the kubelet"),
    ("limits.kubeletRestartMinutes", "`KubeletRestarting`: within this time"),
    (
        "limits.statusWriteSeconds",
        "`ApiWriteBlocked`, `WebhookDeadlock`, `WebhookRisk`: who writes Node status gives up after this time",
    ),
    ("limits.gatewayRefreshMinutes", "`VpeGatewaySuspected`: what its next step says to wait after a refresh"),
    (
        "limits.recurrenceDays",
        "what comes back is counted for so long; so are `MachineIdentityChanged`, `CalicoFailureRecurring`",
    ),
    (
        "cluster.routineSeconds",
        "`NetworkUnavailableBrief` until then, `NetworkUnavailableProlonged` from then on; Pods of Calico may be not Ready for so long",
    ),
    ("cluster.criticalSeconds", "`NetworkUnavailableProlonged` is critical from then on"),
    ("cluster.calicoRestarts", "restarts of a Pod of Calico that is not Ready, which beat `routineSeconds`"),
    ("cluster.calicoRestartMinutes", "within this time"),
    (
        "cluster.kubeletGraceSeconds",
        "`AgentStale`: after the control plane has called the kubelet silent, at 40 to 50 s",
    ),
    ("cluster.agentGraceSeconds", "`AgentStale`: without a Ready Pod of the agent"),
    ("cluster.readyTurns", "`NodeReadyFlapping`: times that a kubelet turned Ready or not"),
    ("cluster.readyTurnMinutes", "`NodeReadyFlapping`: within this time"),
    ("cluster.staleMinutes", "`NodeIpReused`, `CalicoDataForDeletedNodes`: what may still be cleaned up"),
    ("cluster.controllersAbsentMinutes", "`CalicoKubeControllersDown` is a warning from then on"),
    (
        "cluster.cleanupMinutes",
        "`IpLeakSuspected`, `HostEndpointStale`: what calico-kube-controllers may still clean up",
    ),
    ("cluster.migrationMinutes", "`CalicoMigrationStalled`: no worker more has been moved for so long"),
    (
        "cluster.masterUpdateMinutes",
        "`MasterUpdateInProgress`: after the API server's version changed; `MasterUnreachableClusterwide` is critical only then",
    ),
    (
        "cluster.transitMinutes",
        "`WorkerStuckInTransition`: a worker that is rebooted, reloaded or new is not Ready for so long",
    ),
    (
        "cluster.scrapeSilenceSeconds",
        "`AgentScrapeFailing`: nobody collects metrics that were collected regularly for twice as long",
    ),
    ("cluster.recurrences", "`CalicoFailureRecurring`: episodes within `limits.recurrenceDays`"),
    ("cluster.fewWorkers", "scope `few`: at most so many workers"),
    ("cluster.fewPercent", "scope `few`: or so many of them"),
    ("cluster.mostPercent", "scope `most`: at least so many"),
    ("settlingSeconds", "a node that has just booted or joined"),
    ("events.perHour", "Events of one agent, beside ten at once; 0: none"),
    ("events.clusterPerSecond", "Events of all agents together, when all have something to tell"),
    ("writes.clusterPerSecond", "patches of Nodes by all agents together, when all have something to tell"),
];

const THRESHOLDS: &str = "<!-- thresholds: written by `NODEVITALS_BLESS=1 cargo test --lib readme` -->\n";
const THRESHOLDS_END: &str = "<!-- end of thresholds -->";

fn thresholds() -> String {
    let defaults = Config::defaults();
    let mut text = String::from("| key | default | from | to | what |\n|---|---|---|---|---|\n");
    for ((key, least, most), (named, meaning)) in RANGES.iter().zip(MEANINGS) {
        assert_eq!(key, named, "each key has its meaning, in the same order");
        let default = number(&defaults, key).expect("a number");
        writeln!(text, "| `{key}` | {default} | {least} | {most} | {meaning} |").expect("memory");
    }
    assert_eq!(RANGES.len(), MEANINGS.len());
    text
}

#[test]
fn the_table_of_thresholds_is_that_of_the_configuration() {
    is_written(THRESHOLDS, THRESHOLDS_END, &thresholds());
}

#[test]
fn the_configuration_that_is_shown_is_valid() {
    let readme = std::fs::read_to_string(README).expect("README.md");
    let (_, section) = readme.split_once("\n## Configuration\n").expect("the section");
    let (_, rest) = section.split_once("```yaml\n").expect("an example");
    let (example, _) = rest.split_once("```").expect("its end");
    let config = Config::parse(example).expect("valid");
    assert_ne!(config, Config::default());
}

/// The objects that the README gives to controllers name conditions and pages that this program has, as it writes them.
#[test]
fn objects_for_controllers_fit_what_is_written() {
    let readme = std::fs::read_to_string(README).expect("README.md");
    let (_, rest) = readme.split_once("<!-- controllers:").expect("the mark before the objects");
    let (section, _) = rest.split_once("<!-- end of controllers -->").expect("the mark after them");
    let objects: Vec<serde_json::Value> = section
        .split("```yaml\n")
        .skip(1)
        .map(|part| crate::yaml::parse(part.split("```").next().expect("an end")).expect("YAML"))
        .collect();
    let kinds: Vec<&str> = objects.iter().filter_map(|object| object["kind"].as_str()).collect();
    assert_eq!(kinds, ["MachineHealthCheck", "NodeHealthCheck", "NodeReadinessRule", "ConfigMap"]);
    let mut curable: Vec<&str> = CURED_BY_A_NEW_MACHINE.iter().map(|area| area.condition()).collect();
    curable.sort_unstable();
    for object in &objects[..2] {
        let conditions = object["spec"]["unhealthyConditions"].as_array().expect("a list");
        let mut types: Vec<&str> = conditions.iter().filter_map(|it| it["type"].as_str()).collect();
        types.sort_unstable();
        assert_eq!(types, curable);
        assert!(conditions.iter().all(|it| it["status"] == Status::True.as_str()), "{conditions:?}");
    }
    for condition in objects[2]["spec"]["conditions"].as_array().expect("a list") {
        assert!(our_condition(condition["type"].as_str().expect("a type")), "{condition}");
        assert_eq!(condition["requiredStatus"], Status::False.as_str());
    }
    let check: serde_json::Value =
        serde_json::from_str(objects[3]["data"]["nodevitals.json"].as_str().expect("text")).expect("JSON");
    assert_eq!((&check["Port"], &check["Route"]), (&10_580.into(), &"/machinez".into()));
    let (_, karpenter) = readme.split_once("<!-- karpenter:").expect("the mark before what Karpenter acts on");
    let (types, _) = karpenter.split_once("This product writes none of these").expect("the end of the list");
    let types: Vec<&str> = types.split('`').skip(1).step_by(2).collect();
    assert!(types.len() >= 5 && !types.iter().any(|kind| our_condition(kind)), "{types:?}");
}
