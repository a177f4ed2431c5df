//! A Pod on a node that erases what its agent kept: it is made, waited for, and deleted.

use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::template::Template;
use super::{AGAIN, Options};
use crate::api::{Api, call, get, said};
use crate::cli::terminal;

/// Erases what the agent kept on a node. A dry run lets the API server say whether the Pod may be made.
///
/// # Errors
/// What is left there, and why.
pub(super) async fn erase(api: &Api, options: &Options, template: &Template, node: &str) -> Result<(), String> {
    let pod = template.pod(node, Timestamp::now())?;
    let pods = format!("/api/v1/namespaces/{}/pods", options.namespace);
    let dry_run = if options.dry_run { "?dryRun=All" } else { "" };
    let made = send(api, "POST", &format!("{pods}{dry_run}"), &pod).await;
    let made =
        made.map_err(|why| format!("the Pod that erases cannot be made in namespace {}: {why}", options.namespace))?;
    if options.dry_run {
        return Ok(());
    }
    let name = made["metadata"]["name"].as_str().ok_or("the API server's answer names no Pod")?;
    let path = format!("{pods}/{name}");
    let until = Instant::now() + options.patience();
    let erased = loop {
        let now = get(&api.unary, &path).await;
        if let Some(ended) = now.as_ref().ok().and_then(ended) {
            break ended;
        }
        if Instant::now() >= until {
            let why = now.map_or_else(|error| said(&error), |pod| waits(&pod));
            break Err(format!("the Pod that erases has not ended within {} s: {why}", options.timeout));
        }
        sleep(AGAIN).await;
    };
    let gone = json!({"apiVersion": "v1", "kind": "DeleteOptions", "gracePeriodSeconds": 0});
    if let Err(why) = send(api, "DELETE", &path, &gone).await {
        terminal::note(&format!(
            "the Pod {}/{name} on {node} cannot be deleted: {}",
            options.namespace,
            terminal::clean(&why)
        ));
    }
    erased
}

async fn send(api: &Api, method: &str, path: &str, body: &Value) -> Result<Value, String> {
    let request =
        http::Request::builder().method(method).uri(path).header(http::header::CONTENT_TYPE, "application/json");
    let request = request.body(body.to_string().into_bytes()).map_err(|error| error.to_string())?;
    call(&api.unary, request).await.map_err(|error| said(&error))
}

/// How the Pod ended; none while it has not.
fn ended(pod: &Value) -> Option<Result<(), String>> {
    match pod["status"]["phase"].as_str() {
        Some("Succeeded") => Some(Ok(())),
        Some("Failed") => Some(Err(why(pod))),
        _ => None,
    }
}

/// Why it failed: in its own last words, or the kubelet's.
fn why(pod: &Value) -> String {
    let status = &pod["status"];
    let own = status["containerStatuses"][0]["state"]["terminated"]["message"].as_str();
    if let Some(own) = own.map(str::trim).filter(|text| !text.is_empty()) {
        return own.strip_prefix("nodevitals: ").unwrap_or(own).to_owned();
    }
    let texts =
        [&status["reason"], &status["message"], &status["containerStatuses"][0]["state"]["terminated"]["reason"]];
    let texts: Vec<&str> = texts.into_iter().filter_map(Value::as_str).collect();
    format!("the Pod that erases failed: {}", texts.join(": "))
}

/// What it waits for.
fn waits(pod: &Value) -> String {
    let waiting = &pod["status"]["containerStatuses"][0]["state"]["waiting"];
    let texts: Vec<&str> = ["reason", "message"].iter().filter_map(|key| waiting[key].as_str()).collect();
    if texts.is_empty() { "the node's kubelet has not started it".to_owned() } else { texts.join(": ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_says_how_it_ended_and_what_it_waits_for() {
        let of = |status: Value| json!({ "status": status });
        let container = |state: Value| json!([{ "state": state }]);
        assert_eq!(ended(&of(json!({"phase": "Succeeded"}))), Some(Ok(())));
        for going_on in
            [json!({}), json!({"phase": "Pending"}), json!({"phase": "Running"}), json!({"phase": "Unknown"})]
        {
            assert_eq!(ended(&of(going_on)), None);
        }
        let own =
            container(json!({"terminated": {"reason": "Error", "message": "nodevitals: /node/nodevitals: holds x\n"}}));
        let said = ended(&of(json!({"phase": "Failed", "containerStatuses": own})));
        assert_eq!(said, Some(Err("/node/nodevitals: holds x".into())));
        let said = ended(&of(json!({"phase": "Failed", "reason": "Evicted", "message": "low on disk"})));
        assert_eq!(said, Some(Err("the Pod that erases failed: Evicted: low on disk".into())));
        let pulls = container(json!({"waiting": {"reason": "ErrImagePull", "message": "no such image"}}));
        assert_eq!(waits(&of(json!({"containerStatuses": pulls}))), "ErrImagePull: no such image");
        assert!(waits(&of(json!({"phase": "Pending"}))).contains("kubelet has not started it"));
    }
}
