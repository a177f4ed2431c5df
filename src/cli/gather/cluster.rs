//! Evidence of workers through the API server: what it has of each, and what the worker's own `nodevitals gather` hands out.
//!
//! The agent's pages are open to whoever reaches the node's port, so they do not hand out what a bundle holds: the facts come
//! by `kubectl exec`, with the caller's rights. Where that cannot be had, the bundle says why and what to do.

use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use futures::{StreamExt as _, stream};
use http_body_util::{BodyExt as _, Limited};
use jiff::Timestamp;
use kube::Client;
use kube::client::Body;
use serde_json::Value;

use super::exec::Agent;
use super::{Options, Taken, clean_lines, kept, print_json, progress};
use crate::agent::{Depth, Gatherer, HostRoot};
use crate::api::{Api, chain};
use crate::bundle::{Bundle, FACTS, Item, Manifest, summary};
use crate::cli::terminal::{clean, note};
use crate::config::Config;
use crate::facts::utc_in_names;
use crate::verdict::{WorkerState, annotation};

/// Longest wait for one answer.
const DEADLINE: Duration = Duration::from_secs(10);
/// Nothing longer is taken, in bytes.
const LONGEST: usize = 8 << 20;
/// Evidence of one worker is no larger, in bytes.
const ROOM: u64 = 64 << 20;
/// Objects of a list, as the paths below say.
const PAGE_OF: usize = 500;
/// What is read of a container's log.
const LOG: &str = "tailLines=2000&limitBytes=262144";

/// What the API server has of a worker: key, file, and path with `@` for the worker's name.
const OF_NODE: [(&str, &str, &str); 4] = [
    ("E01", "api/node.json", "/api/v1/nodes/@"),
    (
        "E10",
        "api/events.json",
        "/api/v1/events?fieldSelector=involvedObject.kind%3DNode,involvedObject.name%3D@&limit=500",
    ),
    ("E18", PODS, "/api/v1/pods?fieldSelector=spec.nodeName%3D@&limit=500"),
    ("E30", "api/lease.json", "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/@"),
];
/// The pods on a worker, of which the logs are known.
const PODS: &str = "api/pods.json";
/// What the worker's agent says.
const PAGE: &str = "agent/findings.json";

/// What it has of the cluster, with `~` for the namespace of this product.
const OF_CLUSTER: &[(&str, &str, &str)] = &[
    ("E09", "api/deployments.json", "/apis/apps/v1/deployments?limit=500"),
    ("E17", "api/daemonsets.json", "/apis/apps/v1/daemonsets?limit=500"),
    ("E17", "api/bgpconfigurations.json", "/apis/crd.projectcalico.org/v1/bgpconfigurations"),
    ("E17", "api/bgppeers.json", "/apis/crd.projectcalico.org/v1/bgppeers"),
    ("E17", "api/felixconfigurations.json", "/apis/crd.projectcalico.org/v1/felixconfigurations"),
    ("E17", "api/ippools.json", "/apis/crd.projectcalico.org/v1/ippools"),
    ("E17", "api/hostendpoints.json", "/apis/crd.projectcalico.org/v1/hostendpoints?limit=500"),
    ("E17", "api/clusterinformations.json", "/apis/crd.projectcalico.org/v1/clusterinformations"),
    ("E17", "api/installations.json", "/apis/operator.tigera.io/v1/installations"),
    ("E17", "api/tigerastatuses.json", "/apis/operator.tigera.io/v1/tigerastatuses"),
    ("E18", "api/pods-kube-system.json", "/api/v1/namespaces/kube-system/pods?limit=500"),
    ("E18", "api/pods-calico-system.json", "/api/v1/namespaces/calico-system/pods?limit=500"),
    ("E19", "api/caliconodestatuses.json", "/apis/crd.projectcalico.org/v1/caliconodestatuses?limit=500"),
    ("E28", "api/ipamconfigs.json", "/apis/crd.projectcalico.org/v1/ipamconfigs"),
    ("E28", "api/ipamhandles.json", "/apis/crd.projectcalico.org/v1/ipamhandles?limit=500"),
    ("E28", "api/ipamblocks.json", "/apis/crd.projectcalico.org/v1/ipamblocks?limit=500"),
    ("E28", "api/blockaffinities.json", "/apis/crd.projectcalico.org/v1/blockaffinities?limit=500"),
    ("E31", "api/validatingwebhooks.json", "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations"),
    ("E31", "api/mutatingwebhooks.json", "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations"),
    ("E31", "api/endpointslices.json", "/apis/discovery.k8s.io/v1/endpointslices?limit=500"),
    ("E30", "api/leases.json", "/apis/coordination.k8s.io/v1/namespaces/~/leases"),
    ("E12", "api/nodes.json", "/api/v1/nodes?limit=500"),
    ("E14", "api/services.json", "/api/v1/services?limit=500"),
    ("E15", "api/networkpolicies.json", "/apis/networking.k8s.io/v1/networkpolicies?limit=500"),
    ("E15", "api/calico-networkpolicies.json", "/apis/crd.projectcalico.org/v1/networkpolicies?limit=500"),
    ("E15", "api/globalnetworkpolicies.json", "/apis/crd.projectcalico.org/v1/globalnetworkpolicies?limit=500"),
    ("E15", "api/globalnetworksets.json", "/apis/crd.projectcalico.org/v1/globalnetworksets?limit=500"),
    ("E11", "agent/report.json", "/api/v1/namespaces/~/services/nodevitals-aggregator:http/proxy/api/v1/report"),
    ("E10", "api/warnings.json", "/api/v1/events?fieldSelector=type%3DWarning&limit=500"),
];

/// Containers whose logs are taken: key, beginning of the pod's name, container.
const LOGS: [(&str, &str, &str); 5] = [
    ("E03", "calico-node-", "calico-node"),
    ("E04", "calico-node-", "install-cni"),
    ("E05", "calico-node-", "calico-extension"),
    ("E06", "ibm-keepalived-watcher-", "calico-extension"),
    ("E09", "calico-kube-controllers-", "calico-kube-controllers"),
];

/// Of the workers that were asked for, into a directory for each.
pub(super) async fn gather(options: &Options) -> anyhow::Result<()> {
    let api = options.server.connect().await?;
    let nodes = choose(&api, options).await?;
    let now = Timestamp::now();
    let named = || PathBuf::from(format!("nodevitals-{}", utc_in_names(now)));
    let folder = options.output.clone().unwrap_or_else(named);
    if folder == Path::new("-") {
        bail!("--output -: evidence of workers goes into a directory, one below it for each");
    }
    let config = Config::load(options.config.as_deref())?;
    let all = nodes.len();
    let mut done = 0;
    let mut bundles = vec![one(&api, options, &config, None, &folder).await?];
    note(&format!("cluster: {}", count(&bundles[0].manifest)));
    let each = nodes.iter().map(|node| of(&api, options, &config, node, &folder));
    let mut each = stream::iter(each).buffer_unordered(options.parallel.into());
    while let Some((node, taken)) = each.next().await {
        done += 1;
        let taken = taken?;
        note(&format!("[{done}/{all}] {node}: {}", count(&taken.manifest)));
        bundles.push(taken);
    }
    if options.json {
        return print_json(&bundles);
    }
    if let [node, ..] = &nodes[..] {
        note(&format!("then: nodevitals repair {node} --evidence {}", folder.join(node).display()));
    }
    crate::cli::terminal::print(&format!("{}\n", folder.display()));
    Ok(())
}

fn count(manifest: &Manifest) -> String {
    let missing = manifest.missing().count();
    format!("{} pieces, {missing} could not be taken", manifest.items.len() - missing)
}

/// The workers that are meant.
async fn choose(api: &Api, options: &Options) -> anyhow::Result<Vec<String>> {
    let selector = options.selector.as_deref().unwrap_or_default();
    if selector.is_empty() && options.worst.is_none() {
        return Ok(options.nodes.clone());
    }
    let escaped = selector.replace('%', "%25").replace('=', "%3D").replace('&', "%26").replace(' ', "%20");
    let list = ask(&api.unary, &format!("/api/v1/nodes?labelSelector={escaped}")).await;
    let list = list.map_err(|why| anyhow::anyhow!("API server {}: nodes: {}", api.server, clean(&why)))?;
    let list: Value = serde_json::from_slice(&list).context("the API server's list of nodes")?;
    let nodes = list["items"].as_array().map_or(&[][..], Vec::as_slice);
    let mut nodes: Vec<(usize, String)> = nodes.iter().filter_map(ranked).collect();
    if let Some(worst) = options.worst {
        nodes.sort_unstable();
        nodes.truncate(worst);
    }
    anyhow::ensure!(!nodes.is_empty(), "no worker has these labels: {selector}");
    Ok(nodes.into_iter().map(|(_, name)| name).collect())
}

/// A worker's name, behind how good its state is.
fn ranked(node: &Value) -> Option<(usize, String)> {
    const WORST_FIRST: [WorkerState; 4] =
        [WorkerState::Critical, WorkerState::Warning, WorkerState::Unknown, WorkerState::Normal];
    let name = node["metadata"]["name"].as_str()?;
    let state =
        node["metadata"]["annotations"][annotation::STATE].as_str().map_or(WorkerState::Unknown, WorkerState::parse);
    Some((WORST_FIRST.iter().position(|it| *it == state)?, crate::aggregator::name(name).ok()?))
}

async fn of<'a>(
    api: &Api,
    options: &Options,
    config: &Config,
    node: &'a String,
    folder: &Path,
) -> (&'a String, anyhow::Result<Taken>) {
    (node, one(api, options, config, Some(node), folder).await)
}

/// Of one worker, or of the cluster.
async fn one(
    api: &Api,
    options: &Options,
    config: &Config,
    node: Option<&String>,
    folder: &Path,
) -> anyhow::Result<Taken> {
    let (name, table) = node.map_or(("cluster", OF_CLUSTER), |node| (node.as_str(), &OF_NODE[..]));
    let new = Manifest::new(name, "", "asked for through the API server", Timestamp::now());
    let place = folder.join(name);
    let (mut to, mut manifest) = Bundle::folder(&place, new)?;
    let mut gatherer = Gatherer::new(&HostRoot::new("/"), Depth::Light, ROOM);
    let mut wanted: Vec<(&str, String, String)> = table
        .iter()
        .map(|(key, file, path)| (*key, (*file).to_owned(), path.replace('@', name).replace('~', &options.namespace)))
        .collect();
    let mut at = 0;
    let mut agent = None;
    while let Some((key, file, path)) = wanted.get(at).cloned() {
        at += 1;
        let known = manifest.has(&file);
        if known && file != PODS {
            continue;
        }
        let begun = Instant::now();
        let answer = ask(&api.unary, &path).await;
        if file == PODS
            && let Ok(pods) = &answer
        {
            let pods = serde_json::from_slice::<Value>(pods).unwrap_or_default();
            wanted.extend(logs(&pods));
            agent = Agent::among(&pods, &options.namespace);
            wanted.extend(agent.iter().map(|agent| ("E11", PAGE.to_owned(), agent.page())));
        }
        if !known {
            let more = answer.as_ref().is_ok_and(|list| goes_on(list));
            let item = Item { name: file, key: key.to_owned(), of: path, ..Item::default() };
            let mut item = gatherer.add(item, begun, answer, &mut to, &mut manifest);
            if more {
                item.cut = Some(format!("after {PAGE_OF} objects"));
                manifest.put(item.clone());
            }
            say(name, &item);
            to.mark(&manifest).with_context(|| place.display().to_string())?;
        }
    }
    if node.is_some() && !manifest.has(FACTS) {
        let begun = Instant::now();
        if let Err(why) = itself(options, name, agent.as_ref(), &mut gatherer, &mut to, &mut manifest).await {
            let item = Item { name: FACTS.to_owned(), key: "E20-E32".to_owned(), ..Item::default() };
            let item = Item { of: "what the node itself sees".to_owned(), ..item };
            say(name, &gatherer.add(item, begun, Err(why), &mut to, &mut manifest));
        }
    }
    let seen = kept(&to, &manifest, config);
    if let Some(seen) = &seen {
        manifest.note(&seen.verdict);
        manifest.boot_id.clone_from(&seen.snapshot.identity.boot_id);
    }
    manifest.ended_at = Some(Timestamp::now());
    let summary = summary(&manifest, seen.as_ref().map(|seen| &seen.verdict));
    to.finish(&manifest, &clean_lines(&summary)).with_context(|| place.display().to_string())?;
    Ok(Taken { path: place.display().to_string(), manifest })
}

/// What the node itself sees; an error says why it could not be had, and what to do.
async fn itself(
    options: &Options,
    name: &str,
    agent: Option<&Agent>,
    gatherer: &mut Gatherer,
    to: &mut Bundle,
    manifest: &mut Manifest,
) -> Result<(), String> {
    let there = "run `nodevitals gather` on the node";
    let Some(agent) = agent else {
        return Err(format!("no agent was found on this worker in namespace {}; {there}", options.namespace));
    };
    let kept = format!("{there}; {PAGE} says where on it the agent keeps evidence of its own");
    if options.api_only {
        return Err(format!("nothing was to be run on the node (--api-only); {kept}"));
    }
    note(&format!("{name}: gathers in its pod {}, by kubectl exec ...", agent.name()));
    let answer = agent.gather(&options.server, gatherer, to, manifest).await;
    answer.map_err(|why| format!("kubectl exec into {}: {}; {kept}", agent.name(), clean(&why)))
}

fn say(node: &str, item: &Item) {
    if std::io::stderr().is_terminal() || item.failed.is_some() {
        progress(&Item { name: format!("{node}/{}", item.name), ..item.clone() });
    }
}

/// Whether this is a list of which there is more: its metadata stand before its objects or, of kinds of others, behind them.
fn goes_on(list: &[u8]) -> bool {
    const MORE: &[u8] = br#""continue":""#;
    let (head, tail) = (&list[..list.len().min(1024)], &list[list.len().saturating_sub(1024)..]);
    let more = |part: &[u8]| {
        let at = part.windows(MORE.len()).position(|window| window == MORE);
        at.is_some_and(|at| part.get(at + MORE.len()).is_some_and(|byte| *byte != b'"'))
    };
    more(head) || more(tail)
}

/// The logs of Calico's pods among these, of this run of the container and, where it was restarted, the one before.
fn logs(pods: &Value) -> Vec<(&'static str, String, String)> {
    let mut logs = Vec::new();
    for pod in pods["items"].as_array().into_iter().flatten() {
        let text = |field: &str| pod["metadata"][field].as_str().unwrap_or_default();
        let (namespace, name) = (text("namespace"), text("name"));
        let containers = ["containers", "initContainers"].map(|kind| pod["spec"][kind].as_array());
        let has = |wanted: &str| containers.iter().flatten().any(|list| list.iter().any(|it| it["name"] == wanted));
        let all = ["containerStatuses", "initContainerStatuses"].map(|kind| pod["status"][kind].as_array());
        for (key, _, container) in LOGS.into_iter().filter(|(_, pod, wanted)| name.starts_with(pod) && has(wanted)) {
            let again = all.iter().flatten().any(|list| {
                list.iter().any(|it| it["name"] == container && it["restartCount"].as_u64().unwrap_or(0) > 0)
            });
            let path = format!("/api/v1/namespaces/{namespace}/pods/{name}/log?container={container}&{LOG}");
            if again {
                logs.push((key, format!("logs/{name}-{container}-before.log"), format!("{path}&previous=true")));
            }
            logs.push((key, format!("logs/{name}-{container}.log"), path));
        }
    }
    logs
}

/// What the API server answers, if it is what was asked for.
async fn ask(client: &Client, path: &str) -> Result<Vec<u8>, String> {
    let request = http::Request::get(path).body(Body::empty()).map_err(|error| error.to_string())?;
    let answer = async {
        let response = client.send(request).await.map_err(|error| chain(&error))?;
        let status = response.status();
        let body = Limited::new(response.into_body(), LONGEST).collect().await.map_err(|error| error.to_string())?;
        let body = body.to_bytes();
        if status.is_success() {
            return Ok(body.to_vec());
        }
        let said = serde_json::from_slice::<Value>(&body).unwrap_or_default();
        // What is no JSON is the API server's own page of a path that it does not have.
        Err(format!("{status}: {}", said["message"].as_str().unwrap_or("this kind of object is not served here")))
    };
    let late = || Err(format!("no answer within {} s", DEADLINE.as_secs()));
    tokio::time::timeout(DEADLINE, answer).await.unwrap_or_else(|_| late())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_worst_workers_come_first() {
        let node = |name: &str, state: Option<&str>| json!({ "metadata": { "name": name, "annotations": state.map(|state| json!({ "nodevitals.dev/state": state })) } });
        let nodes = [
            node("a", Some("Normal")),
            node("b", None),
            node("c", Some("Critical")),
            node("d", Some("Warning")),
            node("../x", None),
        ];
        let mut ranked: Vec<_> = nodes.iter().filter_map(ranked).collect();
        ranked.sort_unstable();
        assert_eq!(ranked.iter().map(|(_, name)| name.as_str()).collect::<Vec<_>>(), ["c", "d", "b", "a"]);
    }

    #[test]
    fn a_list_of_which_there_is_more_is_known() {
        for (list, more) in [
            (r#"{"kind":"PodList","metadata":{"resourceVersion":"1","continue":"abc"},"items":[]}"#, true),
            (r#"{"items":[],"kind":"X","metadata":{"continue":"abc","resourceVersion":"1"}}"#, true),
            (r#"{"items":[],"kind":"X","metadata":{"continue":"","resourceVersion":"1"}}"#, false),
            (r#"{"kind":"Node"}"#, false),
        ] {
            assert_eq!(goes_on(list.as_bytes()), more, "{list}");
        }
    }

    #[test]
    fn logs_are_found_among_the_pods() {
        let pods = json!({ "items": [
            { "metadata": { "namespace": "kube-system", "name": "calico-node-abcde" },
              "spec": { "containers": [{ "name": "calico-node" }], "initContainers": [{ "name": "install-cni" }] },
              "status": { "containerStatuses": [{ "name": "calico-node", "restartCount": 2 }] } },
        ] });
        let names: Vec<String> = logs(&pods).into_iter().map(|(_, name, _)| name).collect();
        assert_eq!(
            names,
            [
                "logs/calico-node-abcde-calico-node-before.log",
                "logs/calico-node-abcde-calico-node.log",
                "logs/calico-node-abcde-install-cni.log",
            ]
        );
    }
}
