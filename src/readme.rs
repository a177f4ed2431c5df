//! Keeps the table of findings in the README in step with the table of checks.

use std::fmt::Write as _;
use std::time::Duration;

use crate::checks::node::ALL;
use crate::verdict::{
    CURED_BY_A_NEW_MACHINE, FLAPPING_FREE, FLAPPING_WINDOW, Patience, SLOWEST_CLEAR, Status, our_condition,
};

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
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/README.md");
    let readme = std::fs::read_to_string(path).expect("README.md");
    let (before, rest) = readme.split_once(BEGIN).expect("the mark before the table");
    let (_, after) = rest.split_once(END).expect("the mark after the table");
    let fresh = format!("{before}{BEGIN}{}{END}{after}", table());
    if std::env::var_os("NODEVITALS_BLESS").is_some() {
        std::fs::write(path, &fresh).expect("README.md can be written");
    } else {
        assert!(readme == fresh, "run `NODEVITALS_BLESS=1 cargo test --lib readme` and look at the difference");
    }
}

#[test]
fn every_key_of_the_configuration_is_shown() {
    let readme = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md")).expect("README.md");
    for key in ["settlingSeconds", "holdDownSeconds", "clearSeconds"] {
        assert!(readme.contains(&format!("\n{key}: ")), "{key}");
    }
    for key in ["perHour", "clusterPerSecond"] {
        assert!(readme.contains(&format!("  {key}: ")), "{key}");
    }
    let limits = serde_json::to_value(crate::checks::Limits::default()).expect("plain numbers");
    for key in limits.as_object().expect("an object").keys() {
        assert!(readme.contains(&format!("  {key}: ")), "{key}");
    }
}

/// The objects that the README gives to controllers name conditions and pages that this program has, as it writes them.
#[test]
fn objects_for_controllers_fit_what_is_written() {
    let readme = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md")).expect("README.md");
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
}
