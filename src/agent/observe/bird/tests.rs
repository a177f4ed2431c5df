use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixListener;
use tokio::task::JoinSet;

use super::*;

const STATUS: &str = "1000-BIRD 1.6.8\n1011-Router ID is 10.0.0.1\n0013 Daemon is up and running\n";
const ROWS: &str =
    "2002-name     proto    table    state  since       info\n1002-device1  Device   master   up     02:24:06    \n";

/// A host root with a socket of Calico's at which each question is answered with what `answer` makes of it; none is
/// silence. Counts the questions.
fn serve(answer: fn(&str) -> Option<String>) -> (tempfile::TempDir, JoinSet<()>, Arc<AtomicUsize>) {
    let root = tempfile::tempdir().expect("a temporary directory");
    let asked = Arc::new(AtomicUsize::new(0));
    let server = listen(root.path(), answer, &asked);
    (root, server, asked)
}

fn listen(root: &Path, answer: fn(&str) -> Option<String>, asked: &Arc<AtomicUsize>) -> JoinSet<()> {
    std::fs::create_dir_all(root.join("var/run/calico")).expect("mkdir");
    let listener = UnixListener::bind(root.join("var/run/calico/bird.ctl")).expect("bind");
    let (mut server, asked) = (JoinSet::new(), Arc::clone(asked));
    server.spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.expect("accept");
            let asked = Arc::clone(&asked);
            tokio::spawn(async move {
                stream.write_all(b"0001 BIRD 1.6.8 ready.\n").await.ok();
                let mut bytes = [0; 256];
                while let Ok(length @ 1..) = stream.read(&mut bytes).await {
                    for question in String::from_utf8_lossy(&bytes[..length]).lines() {
                        asked.fetch_add(1, Ordering::Relaxed);
                        if let Some(answer) = answer(question) {
                            stream.write_all(answer.as_bytes()).await.ok();
                        }
                    }
                }
            });
        }
    });
    server
}

fn source(root: &Path) -> BirdSource {
    BirdSource::new(HostRoot::new(root), Blocking::default())
}

#[expect(clippy::unnecessary_wraps, reason = "one of several answerers, and others are silent")]
fn healthy(question: &str) -> Option<String> {
    Some(match question {
        "restrict" => "0016 Access restricted\n".to_owned(),
        "show status" => STATUS.to_owned(),
        "show protocols" | "show protocols all" => format!("{ROWS}0000 \n"),
        other => format!("9001 {other}\n"),
    })
}

async fn reason(source: &mut BirdSource) -> Option<Reason> {
    let bgp = source.look(None).await.expect("a socket");
    bgp.daemons[0].bird.error().map(|error| error.reason)
}

#[tokio::test]
async fn the_long_answers_are_asked_for_only_when_the_short_one_changes() {
    let (root, _server, asked) = serve(healthy);
    let mut source = source(root.path());
    let bgp = source.look(None).await.expect("BIRD answers");
    assert_eq!(bgp.birds().next().map(|bird| bird.version.as_str()), Some("1.6.8"));
    assert_eq!((asked.load(Ordering::Relaxed), bgp.tcp == Seen::Absent), (4, true));
    assert_eq!(source.look(None).await.as_ref(), Ok(&bgp));
    assert_eq!(asked.load(Ordering::Relaxed), 5);
}

#[tokio::test]
async fn no_socket_is_absent_and_a_stale_one_refuses() {
    let root = tempfile::tempdir().expect("a temporary directory");
    assert_eq!(source(root.path()).look(None).await.expect_err("nothing there").reason, Reason::Missing);
    let (root, mut server, _) = serve(healthy);
    server.abort_all();
    while server.join_next().await.is_some() {}
    assert_eq!(reason(&mut source(root.path())).await, Some(Reason::Refused));
}

#[tokio::test]
async fn one_that_was_restarted_is_asked_again_at_once_and_one_that_went_is_missed() {
    let (root, mut server, asked) = serve(healthy);
    let mut source = source(root.path());
    assert_eq!(reason(&mut source).await, None);
    // The connections of the old one end with its runtime in reality; here its socket is replaced.
    source.daemons[0].session = None;
    server.abort_all();
    while server.join_next().await.is_some() {}
    let socket = root.path().join("var/run/calico/bird.ctl");
    std::fs::remove_file(&socket).expect("remove");
    assert_eq!(reason(&mut source).await, Some(Reason::Missing), "it was here");
    let _server = listen(root.path(), healthy, &asked);
    assert_eq!(reason(&mut source).await, None);
}

#[tokio::test(start_paused = true)]
async fn a_hung_one_is_not_asked_again_until_it_answers() {
    let (root, _server, asked) = serve(|question| match question {
        "restrict" => healthy(question),
        _ => None,
    });
    let mut source = source(root.path());
    assert_eq!(reason(&mut source).await, Some(Reason::TimedOut));
    let before = asked.load(Ordering::Relaxed);
    assert_eq!(reason(&mut source).await, Some(Reason::TimedOut));
    assert_eq!(asked.load(Ordering::Relaxed), before, "the old question stands");
}

#[tokio::test(start_paused = true)]
async fn one_that_accepts_nothing_hangs() {
    let root = tempfile::tempdir().expect("a temporary directory");
    std::fs::create_dir_all(root.path().join("var/run/calico")).expect("mkdir");
    let _listener = std::os::unix::net::UnixListener::bind(root.path().join("var/run/calico/bird.ctl")).expect("bind");
    assert_eq!(reason(&mut source(root.path())).await, Some(Reason::TimedOut));
}

#[tokio::test]
async fn nonsense_and_endless_answers_and_files_are_said() {
    let (root, _server, _) = serve(|_| Some("HTTP/1.1 400\n".to_owned()));
    assert_eq!(reason(&mut source(root.path())).await, Some(Reason::Malformed));
    let (root, _server, _) = serve(|question| match question {
        "show protocols" => Some("1002-x BGP t up 0 Idle\n".repeat(380_000)),
        other => healthy(other),
    });
    // Eight megabytes can take longer than an answer may, on a machine that is busy with something else.
    let mut endless = reason(&mut source(root.path())).await;
    for _ in 0..10 {
        if endless == Some(Reason::TimedOut) {
            endless = reason(&mut source(root.path())).await;
        }
    }
    assert_eq!(endless, Some(Reason::Malformed));
    let root = tempfile::tempdir().expect("a temporary directory");
    std::fs::create_dir_all(root.path().join("var/run/calico/bird.ctl")).expect("mkdir");
    assert_eq!(reason(&mut source(root.path())).await, Some(Reason::WrongKind));
}
