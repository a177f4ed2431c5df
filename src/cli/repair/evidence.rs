//! Whether there is evidence of how the node was in this episode: every cure destroys what is not saved before it.

use std::path::Path;

use jiff::Timestamp;

use crate::bundle::Manifest;
use crate::facts::utc as time;

/// What is known of the evidence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Evidence {
    /// Nobody named any.
    None,
    /// The owner wants speed, not the cause.
    Declined,
    /// There is a bundle.
    Taken(Bundle),
    /// What was named is none, and why.
    Unusable(String),
}

/// What counts of a bundle.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Bundle {
    /// The Node's name, or the machine's, which may be another one.
    pub(super) node: String,
    /// The boot in which it was taken; empty if nobody knows.
    pub(super) boot: String,
    /// When its first piece was taken.
    pub(super) at: Timestamp,
    /// Whether it holds what the node itself saw.
    pub(super) facts: bool,
}

/// What the bundle at `path`, a directory or an archive, says of itself.
pub(super) fn read(path: &Path) -> Evidence {
    match crate::bundle::read(path) {
        Ok((manifest, facts)) => {
            let Manifest { node, boot_id: boot, begun_at: at, .. } = manifest;
            Evidence::Taken(Bundle { node, boot, at, facts: facts.is_some() })
        }
        Err(why) => Evidence::Unusable(format!("{why:#}")),
    }
}

impl Evidence {
    /// Whether it is of this node, which was booted as one of `boots`, in the episode that began then; and the answer for
    /// people.
    pub(super) fn of(&self, node: &str, boots: &[&str], begun: Timestamp) -> (bool, String) {
        match self {
            Evidence::None => (false, format!("none for this episode, which began at {}", time(begun))),
            Evidence::Declined => (true, "declined by the owner; the cause may stay unknown".to_owned()),
            Evidence::Unusable(why) => (false, why.clone()),
            Evidence::Taken(bundle) => {
                let same = bundle.node == node || !bundle.boot.is_empty() && boots.contains(&bundle.boot.as_str());
                // Kubernetes keeps whole seconds.
                let late_enough = bundle.at.as_second() >= begun.as_second();
                match (same, late_enough) {
                    (false, _) => (false, format!("it is of {}, not of {node}", bundle.node)),
                    (true, true) if bundle.facts => (true, format!("taken at {}", time(bundle.at))),
                    (true, true) => (true, format!("taken at {}, without what the node itself sees", time(bundle.at))),
                    (true, false) => (
                        false,
                        format!(
                            "taken at {}, before this episode began at {}: it does not show it",
                            time(bundle.at),
                            time(begun)
                        ),
                    ),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bundle_counts_for_its_node_or_boot_and_its_time() {
        let at: Timestamp = "2026-11-21T10:00:00.5Z".parse().expect("a time");
        let second = |seconds: i64| Timestamp::from_second(at.as_second() + seconds).expect("valid");
        let taken =
            |node: &str, boot: &str| Evidence::Taken(Bundle { node: node.into(), boot: boot.into(), at, facts: true });
        assert!(taken("n1", "").of("n1", &["b"], second(0)).0);
        assert!(taken("host-7", "b").of("n1", &["a", "b"], second(-60)).0);
        let (there, why) = taken("n2", "").of("n1", &["", "b"], second(0));
        assert!(!there && why == "it is of n2, not of n1", "{why}");
        let (there, why) = taken("n1", "b").of("n1", &["b"], second(60));
        assert!(!there && why.contains("before this episode began at 2026-11-21T10:01:00Z"), "{why}");
        assert!(!Evidence::None.of("n1", &[], at).0 && Evidence::Declined.of("n1", &[], at).0);
        let (there, why) = read(Path::new("/nonexistent/bundle")).of("n1", &[], at);
        assert!(!there && why.starts_with("/nonexistent/bundle: "), "{why}");
    }
}
