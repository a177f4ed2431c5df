//! What the kubelet says of its node in the node's conditions: read back, they tell what it waits for, minutes later than a look
//! of one's own and in words that other people search for.

use std::time::Duration;

use super::{Finding, Look, Outcome, Severity};
use crate::facts::{KubeletCondition, KubeletSaid, Reason};

/// A Node that was read longer ago says nothing of now: it is read every 30 s while its words are bad ones, every two minutes
/// in a large cluster.
const OLD_READ: Duration = Duration::from_secs(180);
/// A kubelet writes its conditions every 5 minutes, half as long again at most, even when nothing changes
/// (`nodeStatusReportFrequency`; facts.md E.4): older ones are from before it died, hung or lost its way.
const OLD_WORDS: Duration = Duration::from_secs(600);

/// How the errors begin that a kubelet lists in the message of Ready (`nodestatus/setters.go`).
const ERRORS: [&str; 7] = [
    "container runtime",
    "PLEG is",
    "EventedPLEG is",
    "network state",
    "missing node capacity",
    "node is shutting down",
    "CSINode is",
];

/// The conditions and the one of this type, where somebody reads the Node.
pub(super) fn said<'a>(look: &Look<'a>, kind: &str) -> Option<(&'a KubeletSaid, &'a KubeletCondition)> {
    let said = look.now.writes.get()?.said.as_ref()?;
    Some((said, said.of(kind)?))
}

/// Why these words are no news of now, if so.
pub(super) fn are_old(look: &Look<'_>, said: &KubeletSaid, condition: &KubeletCondition) -> Option<String> {
    let age = |at: jiff::Timestamp| Duration::try_from(look.now.taken_at.duration_since(at)).unwrap_or_default();
    if age(said.read_at) > OLD_READ {
        return Some(format!("the Node was last read at {:.0}", said.read_at));
    }
    // What the node lifecycle controller writes moves no heartbeat.
    let heartbeat = condition.heartbeat.filter(|at| condition.status != "Unknown" && age(*at) > OLD_WORDS)?;
    Some(format!("the kubelet last wrote its condition {} at {heartbeat}", condition.kind))
}

/// The errors in a message of Ready: one as it is, several as `[a, b]`, where each may hold commas of its own.
pub(super) fn errors(message: &str) -> Vec<&str> {
    let list = message.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(message);
    let mut errors = Vec::new();
    let mut from = 0;
    for (at, _) in list.match_indices(", ") {
        if ERRORS.iter().any(|begin| list[at + 2..].starts_with(begin)) {
            errors.push(&list[from..at]);
            from = at + 2;
        }
    }
    errors.push(&list[from..]);
    errors
}

/// Whether another code tells, first and with the cause, what this error comes from; or nothing is wrong.
pub(super) fn is_told_elsewhere(look: &Look<'_>, error: &str) -> bool {
    let runtime = &look.now.runtime;
    let failed = [runtime.socket.error(), runtime.status.error(), runtime.sandboxes.error()];
    let silent = failed
        .into_iter()
        .flatten()
        .any(|error| matches!(error.reason, Reason::TimedOut | Reason::Refused | Reason::Missing));
    let says_no = |kind| {
        let condition = runtime.status.get().and_then(|status| status.condition(kind));
        condition.is_some_and(|condition| !condition.status)
    };
    match error {
        _ if error.starts_with("node is shutting down") => true,
        _ if error.starts_with("container runtime network not ready") => silent || says_no("NetworkReady"),
        _ if error.starts_with("container runtime not ready") => silent || says_no("RuntimeReady"),
        _ => silent && (error.starts_with("container runtime") || error.contains("PLEG is")),
    }
}

/// What the kubelet says of a cause that is found already: a clause, or nothing.
pub(super) fn echo(look: &Look<'_>, begin: &str) -> String {
    let Some((said, ready)) = said(look, "Ready").filter(|(_, ready)| ready.status == "False") else {
        return String::new();
    };
    let own = errors(&ready.message).into_iter().find(|error| error.starts_with(begin));
    match own.filter(|_| are_old(look, said, ready).is_none()) {
        Some(error) => format!("; the kubelet says so too{}: \"{error}\"", since(ready)),
        None => String::new(),
    }
}

/// ` since TIME`.
pub(super) fn since(condition: &KubeletCondition) -> String {
    condition.since.map_or_else(String::new, |at| format!(" since {at}"))
}

/// That the kubelet stands by a shortage which is over here: it does so for a while on purpose, and it is no fault.
pub(super) fn lingers(look: &Look<'_>, kind: &str) -> Outcome {
    let current = |(said, condition): &(&KubeletSaid, &KubeletCondition)| {
        condition.status == "True" && are_old(look, said, condition).is_none()
    };
    let Some((_, condition)) = said(look, kind).filter(current) else { return Outcome::Healthy };
    let detail = format!(
        "The kubelet says {kind}{} (\"{}\") though there is enough again here: it stands by that for five minutes after a shortage (evictionPressureTransitionPeriod), in which it takes fewer new pods",
        since(condition),
        condition.message
    );
    let next = "wait until it says otherwise; if it does not within a quarter of an hour, compare its own figures (`kubectl get --raw /api/v1/nodes/NODE/proxy/stats/summary`)";
    Outcome::from_findings(vec![Finding::new(kind, detail).severity(Severity::Info).next(next)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_error_several_and_those_with_commas() {
        // Recorded: a runtime that hung for 250 s.
        let pleg = "PLEG is not healthy: pleg was last seen active 4m10.290886978s ago; threshold is 3m0s";
        assert_eq!(errors(&format!("[container runtime is down, {pleg}]")), ["container runtime is down", pleg]);
        assert_eq!(errors(pleg), [pleg]);
        let capacity = "missing node capacity for resources: cpu, memory, pods";
        let cni = "container runtime network not ready: NetworkReady=false reason:NetworkPluginNotReady message:a, b";
        assert_eq!(errors(&format!("[{cni}, {capacity}]")), [cni, capacity]);
        assert_eq!(errors(""), [""]);
    }

    proptest::proptest! {
        #[test]
        fn nothing_is_lost(text in "(\\[|, |PLEG is|CSINode is|é|a|\\]){0,12}") {
            let list = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(&text);
            proptest::prop_assert_eq!(errors(&text).join(", "), list);
        }
    }
}
