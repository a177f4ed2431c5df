//! When a kubelet that is silent was heard last: by its Lease, which it renews every ten seconds. Its Node says only when it was
//! called silent, and its heartbeats there move every five minutes (catalogue R042).

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use kube::Client;
use serde_json::Value;

use super::cluster::Cluster;
use super::looked::{Unread, get};
use super::store::Store;
use super::watch::escaped;
use crate::clock::since_boot;

/// What was read is read again after this time: a kubelet whose Node cannot be written may well renew its Lease.
const AGAIN: Duration = Duration::from_secs(60);
/// Who is to be asked about is looked up this often.
const TICK: Duration = Duration::from_secs(5);
/// So many are asked about, those that are silent for longest: where many are it is not each for itself.
const MOST: usize = 8;

/// By node.
pub(crate) type Contacts = BTreeMap<Box<str>, Contact>;

/// What was found in a Lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Contact {
    /// Since when the kubelet was silent when it was looked at.
    silent: Option<Timestamp>,
    /// When it was renewed last; none where there is none, or no permission to read it.
    at: Option<Timestamp>,
    /// When it was read.
    read: Duration,
}

/// When the kubelet of this node was heard last, if it is silent and that is known.
pub(crate) fn last(cluster: &Cluster, node: &str) -> Option<Timestamp> {
    let silent = cluster.node(node)?.ready_since();
    cluster.contacts.get(node).filter(|contact| contact.silent == silent)?.at
}

/// Looks for ever.
pub(super) async fn run(client: &Client, store: &Store) -> std::convert::Infallible {
    loop {
        tokio::time::sleep(TICK).await;
        let wanted = wanted(&mut store.lock().cluster, since_boot());
        for (node, silent) in wanted {
            let at = match ask(client, &node).await {
                Ok(at) => at,
                Err(Unread::Denied) => None,
                // It is asked again.
                Err(Unread::Failed(_)) => break,
            };
            store.change(|cluster| {
                let before = cluster.contacts.insert(node.into(), Contact { silent, at, read: since_boot() });
                cluster.revision += u64::from(before.and_then(|before| before.at) != at);
            });
        }
    }
}

/// Whose Lease is to be read, with since when they are silent. What is no longer so is forgotten.
fn wanted(cluster: &mut Cluster, now: Duration) -> Vec<(String, Option<Timestamp>)> {
    let silent = cluster.nodes().filter(|(_, row)| row.kubelet_silent());
    let mut silent: Vec<(Option<Timestamp>, String)> =
        silent.map(|(name, row)| (row.ready_since(), name.to_owned())).collect();
    silent.sort_unstable();
    silent.truncate(MOST);
    cluster.contacts.retain(|node, _| silent.iter().any(|(_, name)| **name == **node));
    let fresh = |contact: &Contact, since| contact.silent == since && now.saturating_sub(contact.read) < AGAIN;
    let known = |name: &str, since| cluster.contacts.get(name).is_some_and(|contact| fresh(contact, since));
    silent.into_iter().filter(|(since, name)| !known(name, *since)).map(|(since, name)| (name, since)).collect()
}

async fn ask(client: &Client, node: &str) -> Result<Option<Timestamp>, Unread> {
    let path = format!("/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/{}", escaped(node));
    let lease: Option<Value> = get(client, &path).await?;
    Ok(lease.as_ref().and_then(renewed))
}

fn renewed(lease: &Value) -> Option<Timestamp> {
    lease["spec"]["renewTime"].as_str()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::aggregator::testing::{apply, at, cluster, node, silent};

    fn worker(name: &str) -> Value {
        node(name, "z", "p", "Normal", &[])
    }

    #[test]
    fn those_that_are_silent_are_asked_about_now_and_then() {
        let mut cluster = cluster(&[worker("a"), silent(worker("b"))], &[]);
        let now = Duration::from_secs(1000);
        assert_eq!(wanted(&mut cluster, now), [("b".to_owned(), Some(at(-120)))]);
        assert_eq!(last(&cluster, "b"), None);
        cluster.contacts.insert("b".into(), Contact { silent: Some(at(-120)), at: Some(at(-165)), read: now });
        assert!(wanted(&mut cluster, now + AGAIN / 2).is_empty());
        assert_eq!(wanted(&mut cluster, now + AGAIN).len(), 1, "it may have been renewed since");
        assert_eq!((last(&cluster, "b"), last(&cluster, "a")), (Some(at(-165)), None));
        // It was heard, and is silent again.
        let mut again = silent(worker("b"));
        again["status"]["conditions"][0]["lastTransitionTime"] = json!(at(60));
        apply(&mut cluster, &again);
        assert_eq!(last(&cluster, "b"), None, "that was another silence");
        assert_eq!(wanted(&mut cluster, now), [("b".to_owned(), Some(at(60)))]);
        apply(&mut cluster, &worker("b"));
        assert!(wanted(&mut cluster, now).is_empty() && cluster.contacts.is_empty());
    }

    #[test]
    fn of_many_some_are_enough() {
        let all: Vec<Value> = (0..40).map(|number| silent(worker(&format!("n{number:02}")))).collect();
        assert_eq!(wanted(&mut cluster(&all, &[]), Duration::ZERO).len(), MOST);
    }

    #[test]
    fn damaged_leases_say_nothing() {
        let time = "2026-11-21T09:57:15.123456Z";
        assert_eq!(renewed(&json!({"spec": {"renewTime": time}})), time.parse().ok());
        for odd in [json!({}), json!({"spec": {"renewTime": 7}}), json!({"spec": {"renewTime": "soon"}}), json!([])] {
            assert_eq!(renewed(&odd), None, "{odd}");
        }
    }
}
