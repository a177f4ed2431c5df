//! The watch against a server that says, line by line, what a test wants.

use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::aggregator::model::NodeView;

/// What the server answers to one request.
struct Answer {
    status: &'static str,
    lines: Vec<String>,
    /// The connection stays open after the last line.
    open: bool,
}

fn answer(status: &'static str, lines: &[&str], open: bool) -> Answer {
    Answer { status, lines: lines.iter().map(|line| (*line).to_owned()).collect(), open }
}

fn node(event: &str, name: &str, version: u32) -> String {
    format!(r#"{{"type":"{event}","object":{{"metadata":{{"name":"{name}","resourceVersion":"{version}"}}}}}}"#)
}

fn bookmark(version: u32, ends_list: bool) -> String {
    let annotations = if ends_list { r#","annotations":{"k8s.io/initial-events-end":"true"}"# } else { "" };
    format!(
        r#"{{"type":"BOOKMARK","object":{{"kind":"Node","apiVersion":"v1","metadata":{{"resourceVersion":"{version}"{annotations}}}}}}}"#
    )
}

#[derive(Default)]
struct Log {
    requests: Vec<String>,
    changes: Vec<String>,
}

async fn respond(mut stream: TcpStream, answers: Arc<Mutex<std::vec::IntoIter<Answer>>>, log: Arc<Mutex<Log>>) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => return,
        }
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    log.lock().expect("no panic").requests.push(head.split(' ').nth(1).unwrap_or_default().to_owned());
    let Some(answer) = answers.lock().expect("no panic").next() else { std::future::pending().await };
    let head = format!("HTTP/1.1 {}\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n", answer.status);
    stream.write_all(head.as_bytes()).await.expect("client reads");
    for line in answer.lines {
        stream.write_all(format!("{line}\n").as_bytes()).await.expect("client reads");
        stream.flush().await.expect("client reads");
        // So that lines are not all one packet.
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    if answer.open {
        std::future::pending::<()>().await;
    }
}

/// Follows nodes of a server with these answers until `changes` changes have come, and returns the log.
async fn followed(answers: Vec<Answer>, changes: usize) -> Log {
    followed_while(answers, IDLE, changes).await
}

/// The same, where for so long nothing may come.
async fn followed_while(answers: Vec<Answer>, idle: Duration, changes: usize) -> Log {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
    let address = listener.local_addr().expect("bound");
    let log = Arc::new(Mutex::new(Log::default()));
    let answers = Arc::new(Mutex::new(answers.into_iter()));
    let server_log = Arc::clone(&log);
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.expect("accepts");
            tokio::spawn(respond(stream, Arc::clone(&answers), Arc::clone(&server_log)));
        }
    });
    let mut config = kube::Config::new(format!("http://{address}").parse().expect("a URL"));
    config.default_retry = false;
    let client = Client::try_from(config).expect("a client");
    let paths = vec!["/api/v1/nodes".to_owned(), "/apis/other/v3/nodes".to_owned()];
    let kind = Kind { name: "nodes", paths, selector: "labelSelector=a%3Db", optional: true, metadata_only: false };
    let (done, finished) = tokio::sync::oneshot::channel();
    let mut done = Some(done);
    let sink_log = Arc::clone(&log);
    let mut sink = move |change: Change<NodeView>| {
        let mut log = sink_log.lock().expect("no panic");
        log.changes.push(match change {
            Change::Found => "found".to_owned(),
            Change::ListBegins => "list".to_owned(),
            Change::Here(node) => format!("+{}", node.metadata.name),
            Change::Gone(node) => format!("-{}", node.metadata.name),
            Change::ListEnds => "listed".to_owned(),
            Change::Lost(_) => "lost".to_owned(),
            Change::NotThere(NotThere::Missing) => "missing".to_owned(),
            Change::NotThere(NotThere::Denied) => "denied".to_owned(),
        });
        if log.changes.len() >= changes
            && let Some(done) = done.take()
        {
            let _ = done.send(());
        }
    };
    tokio::select! {
        never = follow_while(&client, &kind, idle, &mut sink) => match never {},
        ended = finished => ended.expect("sent"),
        () = tokio::time::sleep(Duration::from_secs(40)) => panic!("too few changes: {:?}", log.lock().expect("no panic").changes),
    }
    std::mem::take(&mut *log.lock().expect("no panic"))
}

fn lines(events: &[String]) -> Vec<&str> {
    events.iter().map(String::as_str).collect()
}

#[tokio::test]
async fn a_streamed_list_goes_over_into_the_watch_and_is_resumed_where_it_ended() {
    let first =
        [node("ADDED", "a", 3), node("ADDED", "b", 1), bookmark(5, true), node("MODIFIED", "b", 6), bookmark(9, false)];
    let second = [node("DELETED", "a", 10)];
    let log = followed(vec![answer("200 OK", &lines(&first), false), answer("200 OK", &lines(&second), true)], 8).await;
    assert_eq!(log.changes, ["found", "list", "+a", "+b", "listed", "+b", "found", "-a"]);
    assert!(
        log.requests[0].contains("sendInitialEvents=true") && log.requests[0].contains("labelSelector=a%3Db"),
        "{:?}",
        log.requests
    );
    assert!(log.requests[1].ends_with("&resourceVersion=9"), "{:?}", log.requests);
}

#[tokio::test]
async fn a_watch_on_which_nothing_comes_is_taken_up_again_and_is_not_lost() {
    let first = [node("ADDED", "a", 3), bookmark(5, true)];
    let mut answers = vec![answer("200 OK", &lines(&first), true), answer("200 OK", &[], true)];
    // On a busy machine one that is about to say something may be given up as well.
    answers.extend((0..5).map(|_| answer("200 OK", &lines(&[node("DELETED", "a", 6)]), false)));
    let log = followed_while(answers, Duration::from_secs(1), 7).await;
    assert_eq!(log.changes[..4], ["found", "list", "+a", "listed"]);
    assert!(log.changes[4..].iter().all(|change| change == "found" || change == "-a"), "{:?}", log.changes);
    assert!(log.requests[1..3].iter().all(|request| request.ends_with("&resourceVersion=5")), "{:?}", log.requests);
}

#[tokio::test]
async fn a_version_that_is_too_old_means_a_new_list() {
    let first = [node("ADDED", "a", 3), bookmark(5, true)];
    let expired = [r#"{"type":"ERROR","object":{"kind":"Status","status":"Failure","code":410,"reason":"Expired","message":"too old"}}"#.to_owned()];
    let again = [node("ADDED", "b", 8), bookmark(9, true)];
    let log = followed(
        vec![
            answer("200 OK", &lines(&first), false),
            answer("200 OK", &lines(&expired), false),
            answer("200 OK", &lines(&again), true),
        ],
        9,
    )
    .await;
    assert_eq!(log.changes, ["found", "list", "+a", "listed", "found", "found", "list", "+b", "listed"]);
    assert!(log.requests[2].contains("sendInitialEvents=true"), "{:?}", log.requests);
}

#[tokio::test]
async fn a_server_without_streaming_lists_is_read_in_pages() {
    let refusal = r#"{"kind":"Status","status":"Failure","code":422,"reason":"Invalid","message":"sendInitialEvents is forbidden"}"#;
    let page1 = r#"{"metadata":{"resourceVersion":"7","continue":"a b"},"items":[{"metadata":{"name":"a"}},7]}"#;
    let page2 = r#"{"metadata":{"resourceVersion":"7"},"items":[{"metadata":{"name":"b"}}]}"#;
    let events = [node("DELETED", "a", 8)];
    let log = followed(
        vec![
            answer("422 Unprocessable Entity", &[refusal], false),
            answer("200 OK", &[page1], false),
            answer("200 OK", &[page2], false),
            answer("200 OK", &lines(&events), true),
        ],
        8,
    )
    .await;
    assert_eq!(log.changes, ["list", "found", "+a", "found", "+b", "listed", "found", "-a"]);
    assert!(log.requests[2].contains("continue=a%20b"), "{:?}", log.requests);
    assert!(
        log.requests[3].contains("watch=true") && log.requests[3].ends_with("&resourceVersion=7"),
        "{:?}",
        log.requests
    );
}

#[tokio::test]
async fn a_server_that_knows_nothing_of_streaming_lists_goes_quiet_and_is_read_in_pages() {
    let quiet = [node("ADDED", "a", 3)];
    let page = r#"{"metadata":{"resourceVersion":"7"},"items":[{"metadata":{"name":"a"}}]}"#;
    let log = followed(vec![answer("200 OK", &lines(&quiet), true), answer("200 OK", &[page], false)], 7).await;
    assert_eq!(log.changes, ["found", "list", "+a", "list", "found", "+a", "listed"]);
}

#[tokio::test]
async fn what_cannot_be_read_costs_itself() {
    let events = [
        node("ADDED", "a", 3),
        r#"{"type":"ADDED","object":7}"#.to_owned(),
        r#"{"type":"ADDED","object":{"metadata":{"name":"odd","labels":7},"status":{"conditions":[1,{"type":{}}]}}}"#
            .to_owned(),
        r#"{"type":"WHATEVER","object":{}}"#.to_owned(),
        "no json".to_owned(),
        bookmark(5, true),
        node("ADDED", "b", 6),
    ];
    let log = followed(vec![answer("200 OK", &lines(&events), true)], 6).await;
    assert_eq!(log.changes, ["found", "list", "+a", "+odd", "listed", "+b"]);
}

#[tokio::test]
async fn failures_are_said_and_a_list_that_is_cut_off_begins_anew() {
    let half = [node("ADDED", "a", 3)];
    let whole = [node("ADDED", "a", 3), bookmark(5, true)];
    let log = followed(
        vec![
            answer("500 Internal Server Error", &["<html>"], false),
            answer("200 OK", &lines(&half), false),
            answer("200 OK", &lines(&whole), true),
        ],
        9,
    )
    .await;
    assert_eq!(log.changes, ["lost", "found", "list", "+a", "lost", "found", "list", "+a", "listed"]);
}

#[test]
fn values_are_escaped_for_a_query() {
    assert_eq!(escaped("a b/c=1,ü~-._"), "a%20b%2Fc%3D1%2C%C3%BC~-._");
}

#[tokio::test]
async fn an_optional_kind_is_looked_for_in_its_other_group() {
    let missing =
        [r#"{"kind":"Status","status":"Failure","code":404,"reason":"NotFound","message":"no such resource"}"#];
    let events = [node("ADDED", "a", 3), bookmark(5, true)];
    let log =
        followed(vec![answer("404 Not Found", &missing, false), answer("200 OK", &lines(&events), true)], 4).await;
    assert_eq!(log.changes, ["found", "list", "+a", "listed"]);
    assert!(log.requests[0].starts_with("/api/v1/nodes?") && log.requests[1].starts_with("/apis/other/v3/nodes?"));
}

#[tokio::test]
async fn that_an_optional_kind_is_not_there_or_denied_is_told_once_all_its_groups_were_asked() {
    let missing = || answer("404 Not Found", &["404 page not found"], false);
    let denied = [r#"{"kind":"Status","status":"Failure","code":403,"reason":"Forbidden","message":"no"}"#];
    let log = followed(vec![missing(), missing()], 1).await;
    assert_eq!((log.changes, log.requests.len()), (vec!["missing".to_owned()], 2));
    let log = followed(vec![answer("403 Forbidden", &denied, false), missing()], 1).await;
    assert_eq!(log.changes, ["denied"]);
}

#[tokio::test]
async fn what_has_been_seen_is_not_forbidden_because_a_server_that_starts_refuses_it() {
    let denied = [r#"{"kind":"Status","status":"Failure","code":403,"reason":"Forbidden","message":"no"}"#];
    let first = [node("ADDED", "a", 3), bookmark(5, true)];
    let answers = vec![
        answer("200 OK", &lines(&first), false),
        answer("403 Forbidden", &denied, false),
        answer("200 OK", &lines(&[node("ADDED", "b", 6)]), true),
    ];
    let log = followed(answers, 7).await;
    assert_eq!(log.changes, ["found", "list", "+a", "listed", "lost", "found", "+b"]);
    assert!(log.requests[2].contains("resourceVersion=5"), "{:?}", log.requests);
}

#[test]
fn where_only_metadata_is_read_only_metadata_is_asked_for() {
    let mut kind = Kind { name: "x", paths: vec!["/x".into()], selector: "", optional: true, metadata_only: true };
    let accepts = |kind: &Kind, query: &str| {
        let request = kind.request(0, query).expect("a request");
        request.headers().get(ACCEPT).map(|value| value.to_str().expect("text").to_owned())
    };
    let of = |what: &str| Some(format!("application/json;as={what};g=meta.k8s.io;v=v1"));
    assert_eq!(accepts(&kind, "watch=true"), of("PartialObjectMetadata"));
    assert_eq!(accepts(&kind, "limit=50"), of("PartialObjectMetadataList"));
    kind.metadata_only = false;
    assert_eq!(accepts(&kind, "limit=50"), None);
}
