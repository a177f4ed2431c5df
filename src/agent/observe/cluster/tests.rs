//! What a node makes of the answers to its question.

use std::sync::{Arc, Mutex};

use kube::Config;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;

const MAP: &str = r#"{"own":"x","nodes":[{"name":"n1","ready":true,"addresses":["10.0.0.1"]},
    {"name":"n2","ready":false,"addresses":[],"blocks":["10.1.0.0/26"],"later":[1]}],"fullMesh":true}"#;

/// A source that asks a server with these answers; what it has asked.
async fn asks(answers: &[(&str, &str, String)]) -> (ClusterSource, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
    let address = listener.local_addr().expect("bound");
    let answers: Vec<_> = answers
        .iter()
        .map(|(status, headers, body)| {
            format!("HTTP/1.1 {status}\r\n{headers}Connection: close\r\nContent-Length: {}\r\n\r\n{body}", body.len())
        })
        .collect();
    let log = Arc::new(Mutex::new(Vec::new()));
    let server_log = Arc::clone(&log);
    tokio::spawn(async move {
        for answer in answers {
            let Ok((mut stream, _)) = listener.accept().await else { return };
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(stream.read_u8().await.expect("a request"));
            }
            server_log.lock().expect("no panic").push(String::from_utf8_lossy(&head).into_owned());
            // A client that has seen enough hangs up.
            stream.write_all(answer.as_bytes()).await.ok();
        }
    });
    let api = Api::from_config(Config::new(format!("http://{address}").parse().expect("a URL"))).expect("a client");
    let every = Duration::from_secs(60);
    let tells = Arc::new(|| "&v4=00".to_owned());
    let asked = Asked { ways: vec![api], node: "n1".into(), namespace: "nodevitals".into(), every, tells };
    // Nothing is connected to Typha there.
    (ClusterSource::new(asked, HostRoot::new("/nowhere")), log)
}

fn why(answer: Result<Answer, Failed>) -> String {
    match answer.expect_err("no answer") {
        Failed::NoAggregator(why) => why,
        Failed::Unreachable(why) => panic!("{why}"),
    }
}

#[tokio::test]
async fn what_it_has_is_not_sent_again() {
    let tag = "ETag: \"e1\"\r\n";
    let (mut source, log) =
        asks(&[("200 OK", tag, MAP.into()), ("304 Not Modified", tag, String::new()), ("200 OK", "", MAP.into())])
            .await;
    let Ok(Answer::New(map)) = source.look().await else { panic!("a map") };
    assert_eq!((map.own.as_str(), map.nodes.len(), map.full_mesh), ("n1", 2, Some(true)));
    assert_eq!(map.others().count(), 1);
    assert!(matches!(source.look().await, Ok(Answer::Same)));
    source.forget();
    assert!(matches!(source.look().await, Ok(Answer::New(_))));
    let log = log.lock().expect("no panic");
    let path = "GET /api/v1/namespaces/nodevitals/services/nodevitals-aggregator:http/proxy/api/v1/map?node=n1&v4=00 ";
    assert!(log[0].starts_with(path), "{log:?}");
    let known: Vec<_> = log.iter().map(|head| head.contains("if-none-match: \"e1\"")).collect();
    assert_eq!(known, [false, true, false]);
}

#[tokio::test]
async fn no_aggregator_and_no_permission_are_said() {
    let plain = |status| (status, "", String::new());
    let all =
        [plain("404 Not Found"), plain("503 Service Unavailable"), plain("403 Forbidden"), plain("304 Not Modified")];
    let (mut source, _) = asks(&all).await;
    for text in ["no aggregator in namespace nodevitals", "no aggregator is ready", "deploy/rbac-agent.yaml", "304"] {
        let why = why(source.look().await);
        assert!(why.contains(text), "{why}");
    }
    let Err(Failed::Unreachable(_)) = source.look().await else { panic!("nobody listens any more") };
}

#[tokio::test]
async fn garbage_and_what_has_no_end_are_no_map() {
    let body = |body: &str| ("200 OK", "", body.to_owned());
    let nested = "[".repeat(100_000);
    let (mut source, _) = asks(&[
        body("<html>"),
        body(r#"{"own":"n1","nodes":[{"name":"n1","ready":true,"addresses":["x"]}]}"#),
        body(&nested),
        body(&format!(r#"{{"own":"{}"}}"#, "x".repeat(9 << 20))),
    ])
    .await;
    for text in ["cannot be read", "cannot be read", "cannot be read", "broke off"] {
        let why = why(source.look().await);
        assert!(why.contains(text), "{why}");
    }
}

#[tokio::test]
async fn it_asks_every_minute_and_more_rarely_where_there_are_many_nodes() {
    let (mut source, _) = asks(&[]).await;
    let seconds = |wait: Duration| wait.as_secs_f64();
    assert!((45.0..=75.0).contains(&seconds(source.wait(true))));
    source.nodes = 5_000;
    assert!((225.0..=375.0).contains(&seconds(source.wait(true))));
    assert!((0.5..=1.0).contains(&seconds(source.wait(false))));
    let last = (0..20).map(|_| source.wait(false)).last().expect("twenty");
    assert!((60.0..=120.0).contains(&seconds(last)));
}

proptest::proptest! {
    #[test]
    fn no_bytes_are_too_odd(body in proptest::collection::vec(proptest::num::u8::ANY, 0..300), cut in 0..MAP.len()) {
        let _ = read(&body, "n");
        let _ = read(&MAP.as_bytes()[..cut], "n");
    }
}
