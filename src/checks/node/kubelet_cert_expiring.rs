//! The certificate by which the kubelet is known to the API server will expire, and nobody renews it; or the one that it shows
//! those who ask it for logs and metrics.
//!
//! *Looks at* the client certificate that the kubelet's kubeconfig names, and at the serving certificate where it does not make
//! that itself. *Traps*: one of its own making is checked by nobody; a kubelet that rotates it does so after 70 to
//! 90 % of its life (`jitteryDuration` of `client-go/util/certificate`), so little time left is routine until then, however
//! short that life is; many clouds authenticate their kubelets without a certificate (catalogue R049).

use std::time::Duration;

use jiff::SignedDuration;

use super::super::{Area, Check, Finding, Look, Outcome, Severity, findings_or_unknown, first_error, seen};
use crate::facts::{KubeletCertificate, Seen};

pub(super) const CHECK: Check = Check {
    code: "KubeletCertExpiring",
    area: Area::ControlPlanePath,
    severity: Severity::Warning,
    why: "when it has expired the API server refuses the kubelet, the node is declared lost, and a restart does not help",
    next_step: "see whether the API server signs certificates (`kubectl get csr`, approve what is pending), read the kubelet's log (`journalctl -u kubelet | grep -i certificate`), restart it; once expired, join the node again",
    raise_after: Duration::from_secs(60),
    clear_after: Duration::ZERO,
    run,
};

/// Where it is not rotated somebody has to: this long before, or this share of its life.
const BY_HAND: SignedDuration = SignedDuration::from_hours(30 * 24);

fn run(look: &Look<'_>) -> Outcome {
    let kubelet = seen!(look.now.kubelet, Outcome::NotApplicable("this is no Kubernetes worker".into()));
    let (client, serving) = (&kubelet.client_certificate, &kubelet.serving_certificate);
    if let (Seen::Absent, Seen::Absent) = (client, serving) {
        return Outcome::NotApplicable("the kubelet's kubeconfig names no client certificate".into());
    }
    let client_finding = client.get().and_then(|it| judge(look, it, "client"));
    let serving_finding = serving.get().and_then(|it| judge(look, it, "serving")).map(|finding| {
        finding.severity(Severity::Warning).next("see whether a request waits (`kubectl get csr`; nobody approves those of kubelet-serving by itself), approve it or renew the file, and restart the kubelet: until then `kubectl logs`, `exec` and metrics-server may fail on this node")
    });
    let findings = client_finding.into_iter().chain(serving_finding).collect();
    findings_or_unknown(findings, first_error([client.error(), serving.error()]))
}

/// What is wrong with how long a certificate is valid.
fn judge(look: &Look<'_>, certificate: &KubeletCertificate, which: &str) -> Option<Finding> {
    let (from, until, now) = (certificate.not_before, certificate.not_after, look.now.taken_at);
    let life = until.duration_since(from);
    let left = until.duration_since(now);
    let limit = if certificate.rotates { life / 12 } else { BY_HAND.min(life / 5) };
    let unusable = left <= SignedDuration::ZERO || now < from;
    let said = match () {
        () if left <= SignedDuration::ZERO => format!("expired on {until}"),
        () if now < from => {
            format!("is not valid before {from}: the clock of this node or of who signed it is wrong")
        }
        () if left < limit && certificate.rotates => format!("expires on {until}, and should have been renewed before"),
        () if left < limit => format!("expires on {until}, and the kubelet is not set to renew it"),
        () => return None,
    };
    let path = &certificate.path;
    let finding = Finding::new(path.clone(), format!("The kubelet's {which} certificate {path} {said}"));
    Some(if unusable { finding.severity(Severity::Critical) } else { finding })
}

#[cfg(test)]
mod tests {
    use super::super::testing::{self, Node};
    use super::*;
    use crate::facts::Reason;

    const PATH: &str = "/var/lib/kubelet/pki/kubelet-client-current.pem";

    /// A worker with a certificate that has been valid for so many hours and will be for so many more.
    fn certificate(hours: i64, left: i64, rotates: bool) -> Node {
        let node = Node::worker();
        let now = node.look().now.taken_at;
        node.edit(|snapshot| {
            let Seen::Yes(kubelet) = &mut snapshot.kubelet else { panic!("seen") };
            kubelet.client_certificate = Seen::Yes(KubeletCertificate {
                path: PATH.into(),
                not_before: now - SignedDuration::from_hours(hours),
                not_after: now + SignedDuration::from_hours(left),
                rotates,
            });
        })
    }

    fn severity(node: &Node) -> Option<Severity> {
        match run(&node.look()) {
            Outcome::Findings(findings) => {
                assert_eq!(findings[0].subject, PATH);
                Some(findings[0].severity.unwrap_or(CHECK.severity))
            }
            Outcome::Healthy => None,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn rotation_is_overdue_expired_or_not_valid_yet() {
        assert_eq!(severity(&certificate(8300, 400, true)), Some(Severity::Warning), "a year, 17 days left");
        assert_eq!(severity(&certificate(8760, 0, true)), Some(Severity::Critical));
        assert_eq!(severity(&certificate(-1, 8760, true)), Some(Severity::Critical));
        assert_eq!(severity(&certificate(8200, 500, false)), Some(Severity::Warning), "nobody rotates it");
    }

    #[test]
    fn the_one_that_it_serves_with_loses_no_node() {
        let serving = |node: Node| {
            node.edit(|now| {
                let Seen::Yes(kubelet) = &mut now.kubelet else { panic!("seen") };
                kubelet.serving_certificate = std::mem::replace(&mut kubelet.client_certificate, Seen::Absent);
            })
        };
        let Outcome::Findings(findings) = run(&serving(certificate(8760, 0, true)).look()) else { panic!("expired") };
        assert_eq!((findings[0].severity, findings[0].subject.as_str()), (Some(Severity::Warning), PATH));
        assert!(findings[0].detail.starts_with("The kubelet's serving certificate") && findings[0].next_step.is_some());
        assert_eq!(run(&serving(certificate(1, 8759, true)).look()), Outcome::Healthy);
        let unread = certificate(1, 8759, true).edit(|now| {
            let Seen::Yes(kubelet) = &mut now.kubelet else { panic!("seen") };
            kubelet.serving_certificate = testing::denied(PATH);
        });
        assert!(matches!(run(&unread.look()), Outcome::Unknown(_)));
    }

    #[test]
    fn healthy_and_clears() {
        assert_eq!(severity(&certificate(1, 8759, true)), None, "it was renewed");
        assert_eq!(severity(&certificate(1, 8759, false)), None);
    }

    #[test]
    fn trap_the_time_at_which_it_is_renewed_and_no_certificate() {
        assert_eq!(severity(&certificate(7800, 960, true)), None, "89 % of a year");
        assert_eq!(severity(&certificate(21, 3, true)), None, "88 % of a day");
        let node = Node::worker().edit(|now| {
            let Seen::Yes(kubelet) = &mut now.kubelet else { panic!("seen") };
            kubelet.client_certificate = Seen::Absent;
        });
        assert!(matches!(run(&node.look()), Outcome::NotApplicable(_)), "a plugin fetches tokens");
    }

    #[test]
    fn unknown_when_it_cannot_be_read() {
        let node = Node::worker().edit(|now| {
            let Seen::Yes(kubelet) = &mut now.kubelet else { panic!("seen") };
            kubelet.client_certificate = testing::error(PATH, Reason::Malformed);
        });
        assert!(matches!(run(&node.look()), Outcome::Unknown(_)));
    }
}
