//! The kubeconfig with which a CNI plugin asks the API server cannot be used, or its token ends.
//!
//! *Looks at* the files that the configuration in force names (`kubernetes.kubeconfig` of Calico, `kubeconfig` of Multus):
//! there, a server to which TCP connects, authorities that can be decoded, credentials, and the end of the token. calico-node
//! writes Calico's file anew after a quarter of the token's life. *Traps*: a control plane that nobody here reaches is the
//! cause, and this a consequence; the token itself is never kept nor printed; a token without an
//! end (a Secret) is fine; flannel and the bridge plugins need no kubeconfig (catalogue R067).

use std::time::Duration;

use super::super::{Area, Check, Finding, Look, Outcome, Severity, findings_or_unknown, first_error, path};
use super::master_path_partial;
use crate::facts::{CniKubeconfig, PathStep, Seen};

pub(super) const CHECK: Check = Check {
    code: "CniKubeconfigInvalid",
    area: Area::Cni,
    severity: Severity::Critical,
    why: "the CNI plugin cannot ask the API server, so that no pod is started or removed here while the node stays Ready",
    next_step: "restart calico-node on this node (delete its pod), which writes the file again, and read its log for why it did not",
    raise_after: Duration::from_secs(2),
    clear_after: Duration::from_secs(2),
    run,
};

/// A token that lives on for less than this has not been renewed in time, in seconds: calico-node renews it after a
/// quarter of its life.
const SOON: i64 = 600;
/// calico-node writes its file every 6 h, older ones every hour (`node/pkg/cni/token_watch.go`), in seconds.
const STALE: i64 = 24 * 3600;

/// An API server that is started anew is back by then, as for the ways to the control plane themselves.
const CONFIRMED: Duration = Duration::from_secs(30);
/// What to do about a server that is not reached.
const UNREACHABLE: &str = "compare the server with the one in the kubelet's kubeconfig; the Service address of the API server needs kube-proxy's rules here; restarting calico-node (delete its pod) writes the file anew";

fn run(look: &Look<'_>) -> Outcome {
    let cni = &look.now.cni;
    if let Some(error) = cni.files.error() {
        return Outcome::unknown(error);
    }
    if cni.kubeconfigs.is_empty() {
        return Outcome::NotApplicable("the CNI here names no kubeconfig".into());
    }
    let calico = cni.config().is_some_and(|config| config.has("calico"));
    let findings = cni.kubeconfigs.iter().filter_map(|(path, seen)| match seen {
        Seen::Absent => {
            Some(Finding::new(path.clone(), format!("The kubeconfig {path} that the CNI names does not exist")))
        }
        Seen::Yes(config) => judge(look, path, config, calico),
        Seen::Unreadable(_) => None,
    });
    findings_or_unknown(findings.collect(), first_error(cni.kubeconfigs.values().map(Seen::error)))
}

fn judge(look: &Look<'_>, path: &str, config: &CniKubeconfig, calico: bool) -> Option<Finding> {
    let finding = |what: String| Finding::new(path, format!("The CNI's kubeconfig {path} {what}"));
    if let Some(fault) = &config.fault {
        return Some(finding(fault.clone()));
    }
    if let Some(what) = unreachable(look, config) {
        return Some(finding(what).next(UNREACHABLE).repaired_within(CONFIRMED));
    }
    let now = look.now.taken_at.as_second();
    let expires = config.token_expires_at?;
    let age = config.modified.map_or(0, |modified| now - modified.as_second());
    match expires.as_second() - now {
        ..=0 => Some(finding(format!("holds a token that expired at {expires}"))),
        1..SOON => Some(
            finding(format!("holds a token that expires at {expires} and was not renewed")).severity(Severity::Warning),
        ),
        // Only Calico's is known to be written again while its owner runs.
        _ if calico && age > STALE => {
            let written = config.modified.map_or_else(String::new, crate::facts::utc);
            let what = format!("was last written at {written}: its token is not renewed and expires at {expires}");
            Some(finding(what).severity(Severity::Warning))
        }
        _ => None,
    }
}

/// Why no TCP connection to its server stands, if so.
fn unreachable(look: &Look<'_>, config: &CniKubeconfig) -> Option<String> {
    let (host, port) = config.at()?;
    let to = if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
    let path = look.now.control_plane.get()?;
    let leg = path.leg(&to)?;
    // Of some API servers that are not reached MasterPathPartial tells: the Service's address leads to one of them by chance.
    let some = (1..path.endpoints.len()).contains(&master_path_partial::broken(path).len());
    if some && path.service.as_ref().is_some_and(|service| service.to == to) {
        return None;
    }
    let fault = leg.fault().filter(|fault| fault.step <= PathStep::Connect)?;
    let rule = path::by_own_rule(look, leg);
    let why = path::why(leg, None).unwrap_or_else(|| fault.detail.clone());
    Some(format!("names the server {to}, which is not reached from here: {why}{rule}"))
}

#[cfg(test)]
mod tests {
    use jiff::SignedDuration;

    use super::super::testing::{self, Node};
    use super::*;

    const PATH: &str = "/etc/cni/net.d/calico-kubeconfig";

    /// A worker with Calico whose token ends so many seconds from now, in a file that was written so long ago.
    fn token(ends_in: Option<i64>, written_ago: i64) -> Node {
        Node::worker().cni_plugin("calico").edit(|now| {
            let config = CniKubeconfig {
                server: "https://[10.96.0.1]:443".into(),
                fault: None,
                token_expires_at: ends_in.map(|seconds| now.taken_at + SignedDuration::from_secs(seconds)),
                modified: Some(now.taken_at - SignedDuration::from_secs(written_ago)),
            };
            now.cni.kubeconfigs.insert(PATH.into(), Seen::Yes(config));
        })
    }

    fn only(node: &Node) -> Finding {
        let Outcome::Findings(findings) = run(&node.look()) else { panic!("a finding") };
        findings[0].clone()
    }

    #[test]
    fn a_token_that_has_ended_or_is_about_to() {
        let ended = only(&token(Some(-1), 90_000));
        assert_eq!((ended.subject.as_str(), ended.severity), (PATH, None));
        assert!(ended.detail.contains("expired at 2023-11-14T22:13:19Z"), "{}", ended.detail);
        assert_eq!(only(&token(Some(0), 90_000)).severity, None);
        assert_eq!(only(&token(Some(599), 600)).severity, Some(Severity::Warning));
    }

    #[test]
    fn a_file_that_nobody_renews() {
        let stale = only(&token(Some(86_400 * 300), 86_401));
        assert_eq!(stale.severity, Some(Severity::Warning));
        assert!(stale.detail.contains("was last written at 2023-11-13T22:13:19Z"), "{}", stale.detail);
        let multus = token(Some(86_400 * 300), 86_401).edit(|now| {
            now.cni.files = Seen::Yes(vec![testing::cni_file("00-multus.conf", "multus")]);
        });
        assert_eq!(run(&multus.look()), Outcome::Healthy, "a token of a year that is written once");
    }

    #[test]
    fn missing_or_of_no_use() {
        let node = token(None, 0).edit(|now| _ = now.cni.kubeconfigs.insert(PATH.into(), Seen::Absent));
        assert!(only(&node).detail.ends_with("does not exist"));
        let node = token(None, 0).edit(|now| {
            let Some(Seen::Yes(config)) = now.cni.kubeconfigs.get_mut(PATH) else { panic!("seen") };
            config.fault = Some("names no server".into());
        });
        assert_eq!(only(&node).detail, format!("The CNI's kubeconfig {PATH} names no server"));
    }

    #[test]
    fn a_server_that_is_not_reached_by_whichever_way_it_is() {
        let leg = |to: &str, end| testing::leg(to, end);
        let service = token(None, 0).path(|path| path.service = Some(leg("10.96.0.1:443", testing::end())));
        let told = only(&service);
        let start = format!(
            "The CNI's kubeconfig {PATH} names the server 10.96.0.1:443, which is not reached from here: timed out"
        );
        assert!(told.detail.starts_with(&start), "{}", told.detail);
        assert_eq!(told.owner_repairs_within, Some(CONFIRMED));
        // Trap: one of the API servers is not reached, and the Service's address leads there by chance.
        let to = ["10.0.0.8:6443", "10.0.0.9:6443"];
        let some = service.endpoints(&to, &[testing::end(), crate::facts::PathEnd::Answered(200)]);
        assert_eq!(run(&some.look()), Outcome::Healthy);
        let all = some.endpoints(&to, &[testing::end(), testing::end()]);
        assert_eq!(only(&all).detail, told.detail);
        let server = |to: &'static str, end| {
            token(None, 0)
                .edit(|now| {
                    let Some(Seen::Yes(config)) = now.cni.kubeconfigs.get_mut(PATH) else { panic!("seen") };
                    config.server = format!("https://{to}/");
                })
                .path(|path| path.cni = vec![leg(to, end)])
        };
        assert!(only(&server("[fd00::1]:6443", testing::end())).detail.contains("the server [fd00::1]:6443, which"));
        assert_eq!(run(&server("[fd00::1]:6443", crate::facts::PathEnd::Connected).look()), Outcome::Healthy);
        // A certificate or an answer is the control plane's own affair.
        let tls = testing::fault(PathStep::Tls, crate::facts::FaultKind::Expired);
        assert_eq!(run(&server("10.0.0.7:6443", tls).look()), Outcome::Healthy);
    }

    #[test]
    fn healthy_and_clears() {
        assert_eq!(run(&token(Some(18 * 3600), 6 * 3600).look()), Outcome::Healthy);
        assert_eq!(run(&token(Some(601), 60).look()), Outcome::Healthy);
    }

    #[test]
    fn trap_a_token_without_an_end_and_a_cni_without_kubeconfig() {
        assert_eq!(run(&token(None, 86_400 * 400).look()), Outcome::Healthy);
        assert!(matches!(run(&Node::worker().look()), Outcome::NotApplicable(_)));
    }

    #[test]
    fn unknown_when_it_cannot_be_read() {
        let node = token(None, 0).edit(|now| _ = now.cni.kubeconfigs.insert(PATH.into(), testing::denied(PATH)));
        assert!(matches!(run(&node.look()), Outcome::Unknown(_)));
        let node = token(None, 0).edit(|now| now.cni.files = testing::denied("/etc/cni/net.d"));
        assert!(matches!(run(&node.look()), Outcome::Unknown(_)));
    }
}
