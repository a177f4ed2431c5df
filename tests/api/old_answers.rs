//! An API server that answers what was true before, through a proxy that keeps what it was told, and an agent that is
//! stopped meanwhile: no transition is made up, and no time moves.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Mutex;
use std::thread::{scope, sleep};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::agent::{jump, packet_filter, worker_with_chains};
use crate::bench::{AGENT, Bench, condition_of, soon};
use crate::support::wait::eventually;

const PORT: u16 = 8765;
/// Longer than the pause after which an agent reads its Node again.
const PAUSE: Duration = Duration::from_secs(33);

/// What the proxy answers to reads of the Node instead of asking.
#[derive(Default)]
struct Old {
    answer: Mutex<Option<Value>>,
    told: Mutex<u32>,
}

impl Old {
    fn set(&self, answer: Option<Value>) {
        *self.answer.lock().expect("no panic") = answer;
    }

    fn told(&self) -> u32 {
        *self.told.lock().expect("no panic")
    }
}

/// Takes requests one by one until it is told to end.
fn serve(bench: &Bench, listener: &TcpListener, old: &Old) -> Result<()> {
    loop {
        let (stream, _) = listener.accept()?;
        // A client that goes away costs itself.
        if let Ok(true) = answer(bench, stream, old) {
            return Ok(());
        }
    }
}

/// Answers one request; whether it was the one to end.
fn answer(bench: &Bench, stream: TcpStream, old: &Old) -> Result<bool> {
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let (method, path) = line.trim_end_matches(" HTTP/1.1\r\n").split_once(' ').context("a request")?;
    if path == "/end" {
        return Ok(true);
    }
    let (mut length, mut token, mut kind) = (0, String::new(), "plain");
    loop {
        let mut header = String::new();
        reader.read_line(&mut header)?;
        let Some((name, value)) = header.trim_end().split_once(": ") else { break };
        match name.to_lowercase().as_str() {
            "content-length" => length = value.parse()?,
            "authorization" => value.trim_start_matches("Bearer ").clone_into(&mut token),
            "content-type" if value.contains("strategic") => kind = "strategic",
            "content-type" if value.contains("merge-patch") => kind = "merge",
            _ => {}
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    let body = if body.is_empty() { Value::Null } else { serde_json::from_slice(&body)? };
    let kept =
        old.answer.lock().expect("no panic").clone().filter(|_| method == "GET" && path.starts_with("/api/v1/nodes/"));
    let (code, body) = if let Some(kept) = kept {
        *old.told.lock().expect("no panic") += 1;
        (200, kept)
    } else {
        let answer = bench.send(&token, &format!("{method} {kind} {path}"), &body)?;
        (answer.code, answer.body)
    };
    let body = body.to_string();
    let mut stream = stream;
    write!(
        stream,
        "HTTP/1.1 {code} X\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )?;
    Ok(false)
}

/// Writes of the agent to the Node that the API server took.
fn patches(bench: &Bench) -> Result<usize> {
    Ok(bench.writes_on("d1", AGENT)?.len())
}

fn transition(node: &Value) -> Result<Value> {
    Ok(condition_of(node, "PacketFilterProblem")?["lastTransitionTime"].clone())
}

#[test]
fn old_answers_and_a_pause_make_no_transition() -> Result<()> {
    let bench = Bench::take()?;
    worker_with_chains(&bench, "d1")?;
    let token = bench.token("agent", "agent-d1")?;
    let kubeconfig = bench.workspace().directory().join("old-answers.kubeconfig");
    let config = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "c",
        "clusters": [{"name": "c", "cluster": {"server": format!("http://127.0.0.1:{PORT}")}}],
        "users": [{"name": "u", "user": {"token": token}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
    });
    std::fs::write(&kubeconfig, config.to_string())?;
    let listener = bench.host().run_in_network(|| TcpListener::bind(("127.0.0.1", PORT)))??;
    let old = Old::default();
    scope(|scope| {
        let proxy = scope.spawn(|| serve(&bench, &listener, &old));
        let result = old_answers(&bench, &old, kubeconfig.to_str().context("UTF-8")?);
        bench
            .host()
            .run_in_network(|| TcpStream::connect(("127.0.0.1", PORT))?.write_all(b"GET /end HTTP/1.1\r\n\r\n"))??;
        proxy.join().expect("no panic")?;
        result
    })
}

fn old_answers(bench: &Bench, old: &Old, kubeconfig: &str) -> Result<()> {
    let state = bench.workspace().directory().join("old-answers-state");
    let more = ["--kubeconfig", kubeconfig, "--state-dir", state.to_str().context("UTF-8")?];
    let agent = bench.agent_with("d1", &more)?;
    let before = soon("the conditions", || packet_filter(bench, "d1", "False", "PacketFilterHealthy"));
    jump(bench, "-D")?;
    let raised = soon("the jump is missed", || packet_filter(bench, "d1", "True", "KubeProxyChainsUnhooked"));
    // The finding, and what is told of it a moment later.
    sleep(Duration::from_secs(5));
    let (since, written) = (transition(&raised)?, patches(bench)?);

    // An agent that was stopped reads the Node again, and is told what was before.
    agent.signal(Signal::SIGSTOP)?;
    old.set(Some(before.clone()));
    sleep(PAUSE);
    agent.signal(Signal::SIGCONT)?;
    eventually("it has noticed", Duration::from_secs(60), || agent.said("answered with an old Node"));
    old.set(None);
    // Longer than its wait for the next try.
    sleep(Duration::from_secs(10));
    assert_eq!(patches(bench)?, written, "nothing was written because of it");
    assert_eq!(transition(&bench.node("d1")?)?, since);

    // Nor is one deceived that has just begun, and has read nothing newer: its state file knows better.
    agent.end()?;
    drop(agent);
    let asked = old.told();
    old.set(Some(before));
    let agent = bench.agent_with("d1", &more)?;
    soon("the first look", || agent.page("/readyz"));
    sleep(Duration::from_secs(10));
    ensure!(old.told() > asked, "it was not deceived");
    old.set(None);
    let node = packet_filter(bench, "d1", "True", "KubeProxyChainsUnhooked")?;
    assert_eq!(transition(&node)?, since, "the time of the transition has not moved");
    jump(bench, "-A")?;
    soon("it is over", || packet_filter(bench, "d1", "False", "PacketFilterHealthy"));
    let metrics = agent.page("/metrics")?;
    ensure!(metrics.contains("nodevitals_worker_state"), "{metrics}");
    Ok(())
}
