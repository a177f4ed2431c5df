//! Whether calico-node can read the password of its BGP peers. The password itself is never read, and no right to read
//! it is needed: RBAC is asked what it would say. Whether the Secret exists is told where that is permitted.

use std::time::Duration;

use http::Request;
use http::header::{ACCEPT, CONTENT_TYPE};
use jiff::Timestamp;
use kube::Client;
use kube::client::Body;
use serde_json::{Value, json};

use super::looked::{self, DEADLINE, Look, Looked, Unread};
use super::store::Store;
use super::surroundings::Surroundings;

/// While all is well, the same is looked at again after this time.
const AGAIN: Duration = Duration::from_secs(300);
/// What is denied is asked for again after this time.
const DENIED: Duration = Duration::from_secs(60);
/// Namespaces in which calico-node is: one, or two while it moves.
const MOST: usize = 4;
/// What calico-node does with its Secret.
const VERBS: [&str; 3] = ["get", "list", "watch"];

/// Whose way to which Secret.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Way {
    /// Namespace of calico-node and of the Secret.
    pub(crate) namespace: Box<str>,
    /// Service account of calico-node.
    pub(crate) account: Box<str>,
    /// The Secret.
    pub(crate) secret: Box<str>,
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Found {
    /// Where.
    pub(crate) way: Way,
    /// Whether the Secret exists; none without permission to see that.
    pub(crate) exists: Option<bool>,
    /// What calico-node must do and may not.
    pub(crate) refused: Vec<&'static str>,
    /// Since when something is wrong with it.
    pub(crate) since: Option<Timestamp>,
}

impl Found {
    /// Whether calico-node cannot have the password.
    pub(crate) fn is_wrong(&self) -> bool {
        self.exists == Some(false) || !self.refused.is_empty()
    }
}

/// The ways that there are: none where BGP has no password.
fn ways(around: &Surroundings) -> Vec<Way> {
    let Some(secret) = around.bgp().and_then(|bgp| bgp.secret) else { return Vec::new() };
    let mut ways: Vec<Way> = Vec::new();
    for pod in around.calico_pods() {
        let known = |way: &Way| *way.namespace == *pod.name.namespace() && *way.account == *pod.account;
        if ways.len() < MOST && !ways.iter().any(known) {
            let (namespace, account) = (pod.name.namespace().into(), Box::from(&*pod.account));
            ways.push(Way { namespace, account, secret: secret.clone() });
        }
    }
    ways.retain(|way| super::name(&way.namespace).is_ok() && super::name(&way.secret).is_ok());
    ways
}

/// Looks for ever.
pub(super) async fn run(client: &Client, store: &Store) -> std::convert::Infallible {
    let (mut last, mut failed, mut again) = (Looked::new(), false, AGAIN);
    loop {
        looked::tick().await;
        let (ways, before) = {
            let inner = store.lock();
            (ways(&inner.cluster.surroundings), inner.cluster.password.clone())
        };
        if !last.is_due(&ways, failed || before.iter().any(Found::is_wrong), again) {
            continue;
        }
        let (mut found, mut error) = (Vec::new(), None);
        (failed, again) = (false, AGAIN);
        for way in &ways {
            let known = before.iter().find(|known| known.way == *way);
            // For a short time it is as it was.
            let (exists, refused) = (exists(client, way).await, refused(client, way).await);
            error = error.or_else(|| unanswered(exists, &refused));
            failed |= exists == Secret::Unanswered || matches!(refused, Err(Unread::Failed(_)));
            if matches!(refused, Err(Unread::Denied)) {
                again = DENIED;
            }
            let exists = match exists {
                Secret::Exists => Some(true),
                Secret::Missing => Some(false),
                Secret::Hidden => None,
                Secret::Unanswered => known.and_then(|known| known.exists),
            };
            let refused = refused.unwrap_or_else(|_| known.map(|known| known.refused.clone()).unwrap_or_default());
            let mut this = Found { way: way.clone(), exists, refused, since: None };
            if this.is_wrong() {
                this.since = known.and_then(|known| known.since).or_else(|| Some(Timestamp::now()));
            }
            found.push(this);
        }
        store.change(|cluster| {
            cluster.revision += u64::from(cluster.password != found);
            cluster.password = found;
            cluster.looked(Look::Password, error, Timestamp::now());
        });
        last.at(ways);
    }
}

/// Why it is not known whether calico-node can have the password.
fn unanswered(exists: Secret, refused: &Result<Vec<&'static str>, Unread>) -> Option<String> {
    match refused {
        // Who may read what is not there does not matter.
        _ if exists == Secret::Missing => None,
        Err(Unread::Denied) => Some(
            "no permission to create subjectaccessreviews.authorization.k8s.io, by which RBAC is asked whether calico-node may read it"
                .to_owned(),
        ),
        Err(Unread::Failed(why)) => {
            Some(format!("the API server does not say whether calico-node may read it: {why}"))
        }
        Ok(_) => {
            (exists == Secret::Unanswered).then(|| "the API server does not say whether it is there".to_owned())
        }
    }
}

/// What is answered to whether the Secret is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Secret {
    Exists,
    Missing,
    /// There is no permission to see that.
    Hidden,
    Unanswered,
}

/// Asks for the metadata only, and does not read even that.
async fn exists(client: &Client, way: &Way) -> Secret {
    let request = Request::get(format!("/api/v1/namespaces/{}/secrets/{}", way.namespace, way.secret))
        .header(ACCEPT, "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1")
        .body(Body::empty());
    let Ok(request) = request else { return Secret::Unanswered };
    match tokio::time::timeout(DEADLINE, client.send(request)).await {
        Ok(Ok(answer)) => match answer.status().as_u16() {
            200 => Secret::Exists,
            404 => Secret::Missing,
            403 => Secret::Hidden,
            _ => Secret::Unanswered,
        },
        Err(_) | Ok(Err(_)) => Secret::Unanswered,
    }
}

/// What calico-node may not do.
async fn refused(client: &Client, way: &Way) -> Result<Vec<&'static str>, Unread> {
    let mut refused = Vec::new();
    for verb in VERBS {
        if !may(client, way, verb).await? {
            refused.push(verb);
        }
    }
    Ok(refused)
}

async fn may(client: &Client, way: &Way, verb: &str) -> Result<bool, Unread> {
    let Way { namespace, account, secret } = way;
    let question = json!({
        "apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview",
        "spec": {
            "user": format!("system:serviceaccount:{namespace}:{account}"),
            // As the API server adds them to every request of a service account.
            "groups": ["system:serviceaccounts", format!("system:serviceaccounts:{namespace}"), "system:authenticated"],
            "resourceAttributes": {"namespace": namespace, "verb": verb, "resource": "secrets", "name": secret},
        },
    });
    let request = Request::post("/apis/authorization.k8s.io/v1/subjectaccessreviews")
        .header(CONTENT_TYPE, "application/json")
        .body(question.to_string().into_bytes())
        .map_err(|error| Unread::Failed(error.to_string()))?;
    let answer = tokio::time::timeout(DEADLINE, client.request::<Value>(request)).await;
    let answer = answer.map_err(|_| Unread::late(DEADLINE))??;
    let status = &answer["status"];
    // Roles that are bound and gone are an error beside what others grant.
    if status["allowed"] == true {
        return Ok(true);
    }
    // An authorizer that failed has not refused.
    if status["evaluationError"].as_str().is_some_and(|error| !error.is_empty()) {
        return Err(Unread::Failed("the authorizer failed".to_owned()));
    }
    status["allowed"].as_bool().ok_or_else(|| Unread::Failed("an answer that says nothing".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_known_of_it_is_said_with_the_right_that_is_missing() {
        let failed = || Unread::Failed("the authorizer failed".to_owned());
        let denied = unanswered(Secret::Hidden, &Err(Unread::Denied)).expect("it is not known");
        assert!(denied.starts_with("no permission to create subjectaccessreviews.authorization.k8s.io"), "{denied}");
        let unclear = unanswered(Secret::Hidden, &Err(failed())).expect("it is not known");
        assert!(unclear.ends_with("whether calico-node may read it: the authorizer failed"), "{unclear}");
        assert_eq!(
            unanswered(Secret::Unanswered, &Ok(vec!["get"])).as_deref(),
            Some("the API server does not say whether it is there")
        );
        assert_eq!(unanswered(Secret::Hidden, &Ok(vec!["get"])), None, "no right to see the Secret is needed");
        for refused in [Ok(Vec::new()), Err(Unread::Denied), Err(failed())] {
            assert_eq!(unanswered(Secret::Missing, &refused), None, "it is certain that it is missing");
        }
    }
}
