//! Who answers for the webhooks that could stop the system: the endpoints of their Services, and on which nodes they are.
//!
//! These Services may be in any namespace. To watch all EndpointSlices of a cluster for a few of them would cost more than
//! everything else here, so that just these are asked for, now and then, and more often while one has nobody.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use kube::Client;

use super::looked::{self, Look, Looked, Unread, get};
use super::model::ListPage;
use super::object::ObjectView;
use super::store::Store;
use super::surroundings::Surroundings;

/// While each has somebody, the same Services are looked at again after this time.
const AGAIN: Duration = Duration::from_secs(60);
/// Services that are looked at.
const MOST: usize = 32;
/// Endpoints of one that are kept.
const MOST_ENDPOINTS: usize = 64;

/// Namespace and name of a Service.
pub(crate) type Service = (Box<str>, Box<str>);
/// What is known of each.
pub(crate) type Backends = BTreeMap<Service, Backend>;

/// Who answers for a Service.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Backend {
    /// There is no such Service.
    pub(crate) missing: bool,
    /// Those that there are.
    pub(crate) endpoints: Vec<Endpoint>,
    /// Since when none of them is ready.
    pub(crate) nobody_since: Option<Timestamp>,
}

/// One that may answer.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Endpoint {
    /// Its node; empty where it is none of the cluster's.
    pub(crate) node: Box<str>,
    /// Its Pod, if it is one.
    pub(crate) pod: Box<str>,
    /// Whether it is ready.
    pub(crate) ready: bool,
}

impl Backend {
    /// How many are ready.
    pub(crate) fn ready(&self) -> usize {
        self.endpoints.iter().filter(|endpoint| endpoint.ready).count()
    }
}

/// The Services that are to be looked at.
fn wanted(around: &Surroundings) -> Vec<Service> {
    let all = around.webhooks().flat_map(|(_, it)| &it.all).filter_map(|webhook| webhook.service.clone());
    let mut all: Vec<Service> =
        all.filter(|(namespace, name)| super::name(namespace).is_ok() && super::name(name).is_ok()).collect();
    all.sort_unstable();
    all.dedup();
    all.truncate(MOST);
    all
}

/// Looks for ever.
pub(super) async fn run(client: &Client, store: &Store) -> std::convert::Infallible {
    let (mut last, mut failed) = (Looked::new(), false);
    loop {
        looked::tick().await;
        let (wanted, before) = {
            let inner = store.lock();
            (wanted(&inner.cluster.surroundings), inner.cluster.backends.clone())
        };
        if !last.is_due(&wanted, failed || before.values().any(|it| it.nobody_since.is_some()), AGAIN) {
            continue;
        }
        failed = false;
        let (mut found, mut error) = (Backends::new(), None);
        for service in &wanted {
            let known = before.get(service);
            let looked = look(client, service).await.unwrap_or_else(|why| {
                // What is denied is not asked for any sooner.
                failed |= !matches!(why, Unread::Denied);
                error = Some(why.to_string());
                // For a short time it is as it was.
                known.cloned()
            });
            let Some(mut backend) = looked else { continue };
            backend.nobody_since = (backend.ready() == 0)
                .then(|| known.and_then(|known| known.nobody_since).unwrap_or_else(Timestamp::now));
            found.insert(service.clone(), backend);
        }
        store.change(|cluster| {
            cluster.revision += u64::from(cluster.backends != found);
            cluster.backends = found;
            cluster.looked(Look::Backends, error, Timestamp::now());
        });
        last.at(wanted);
    }
}

/// None where the Service leads out of the cluster; why not, when nobody answered and without permission.
async fn look(client: &Client, (namespace, name): &Service) -> Result<Option<Backend>, Unread> {
    let core = format!("/api/v1/namespaces/{namespace}/services/{name}");
    let service: Option<ObjectView> = get(client, &core).await?;
    let Some(service) = service else { return Ok(Some(Backend { missing: true, ..Backend::default() })) };
    if service.spec.kind == "ExternalName" {
        return Ok(None);
    }
    let slices = format!(
        "/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices?labelSelector=kubernetes.io%2Fservice-name%3D{name}"
    );
    let slices: Option<ListPage<ObjectView>> = get(client, &slices).await?;
    Ok(slices.map(|slices| Backend { endpoints: endpoints(&slices.items), ..Backend::default() }))
}

fn endpoints(slices: &[ObjectView]) -> Vec<Endpoint> {
    let all = slices.iter().flat_map(|slice| &slice.endpoints).map(|endpoint| Endpoint {
        node: endpoint.node.as_str().into(),
        pod: endpoint.pod.as_str().into(),
        ready: endpoint.ready.unwrap_or(true),
    });
    let mut all: Vec<Endpoint> = all.take(MOST_ENDPOINTS).collect();
    // In a cluster of both families each is in a slice of either.
    all.sort_unstable();
    all.dedup_by(|a, b| !a.pod.is_empty() && a == b);
    all
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn endpoints_are_kept_once_with_their_nodes() {
        let slice = |ready: Option<bool>| {
            json!({"endpoints": [{"addresses": ["10.0.0.1"], "nodeName": "n1", "conditions": {"ready": ready},
                "targetRef": {"kind": "Pod", "name": "guard-1"}}]})
        };
        let read = |slices: &[serde_json::Value]| {
            let all: Vec<ObjectView> =
                slices.iter().map(|it| serde_json::from_value(it.clone()).expect("an object")).collect();
            Backend { endpoints: endpoints(&all), ..Backend::default() }
        };
        let both = read(&[slice(Some(true)), slice(Some(true))]);
        assert_eq!((both.endpoints.len(), both.ready(), &*both.endpoints[0].node), (1, 1, "n1"));
        assert_eq!(read(&[slice(None)]).ready(), 1, "not said means ready");
        assert_eq!(read(&[slice(Some(false))]).ready(), 0);
        assert_eq!(read(&[json!({"endpoints": [1, {"addresses": 7}]})]).endpoints.len(), 2, "damage costs itself");
        assert!(read(&[]).endpoints.is_empty());
    }
}
