//! The writer against an API server on loopback that answers, hangs or is not there, in time that passes at once.

use std::net::SocketAddr;
use std::sync::Mutex;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use super::*;
use crate::agent::publish::{Kept, state_file};
use crate::checks::{self, Finding, Outcome};
use crate::facts::{Identity, Past};
use crate::verdict::{Beliefs, Now, told};

/// What the API server holds and does.
#[derive(Debug)]
struct Server {
    node: Value,
    /// Whether it answers; else it takes requests and is silent.
    answers: bool,
    /// The next patch is refused, with a wait of so many seconds.
    refuses: Option<u32>,
    requests: usize,
    patches: usize,
    version: u64,
}

type Shared = Arc<Mutex<Server>>;

fn locked(server: &Shared) -> std::sync::MutexGuard<'_, Server> {
    server.lock().expect("no panic")
}

async fn serve(listener: TcpListener, server: Shared) {
    while let Ok((stream, _)) = listener.accept().await {
        tokio::spawn(answer(stream, Arc::clone(&server)));
    }
}

async fn answer(mut stream: TcpStream, server: Shared) -> Option<()> {
    let mut received = Vec::new();
    loop {
        let (end, length) = loop {
            if let Some(end) = received.windows(4).position(|four| four == b"\r\n\r\n") {
                let head = String::from_utf8_lossy(&received[..end]).to_lowercase();
                let length = head.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse().ok());
                break (end + 4, length.unwrap_or(0));
            }
            if stream.read_buf(&mut received).await.ok()? == 0 {
                return None;
            }
        };
        while received.len() < end + length {
            stream.read_buf(&mut received).await.ok()?;
        }
        let answer = {
            let mut server = locked(&server);
            server.requests += 1;
            let patch = received.starts_with(b"PATCH") && server.answers;
            if let Some(seconds) = server.refuses.take_if(|_| patch) {
                let head = format!("429 Too Many Requests\r\nRetry-After: {seconds}");
                Some((head, "Too many requests, please try again later.\n".to_owned()))
            } else {
                if patch {
                    server.merge(&serde_json::from_slice(&received[end..end + length]).expect("JSON"));
                }
                server.answers.then(|| ("200 OK\r\nContent-Type: application/json".to_owned(), server.node.to_string()))
            }
        };
        received.drain(..end + length);
        let Some((head, body)) = answer else {
            // Silent for as long as the other end is there.
            while stream.read_buf(&mut received).await.ok()? > 0 {}
            return None;
        };
        let head = format!("HTTP/1.1 {head}\r\nContent-Length: {}\r\n\r\n", body.len());
        stream.write_all((head + &body).as_bytes()).await.ok()?;
    }
}

impl Server {
    /// As strategic merge does it with conditions and annotations.
    fn merge(&mut self, patch: &Value) {
        self.patches += 1;
        self.version += 1;
        for condition in patch["status"]["conditions"].as_array().into_iter().flatten() {
            let all = self.node["status"]["conditions"].as_array_mut().expect("a list");
            all.retain(|old| old["type"] != condition["type"]);
            all.push(condition.clone());
        }
        for (key, value) in patch["metadata"]["annotations"].as_object().into_iter().flatten() {
            self.node["metadata"]["annotations"][key] = value.clone();
        }
        self.node["metadata"]["resourceVersion"] = self.version.to_string().into();
    }

    fn condition(&self, kind: &str) -> Value {
        let all = self.node["status"]["conditions"].as_array().expect("a list");
        all.iter().find(|condition| condition["type"] == kind).cloned().unwrap_or_default()
    }
}

fn at(second: u64) -> Now {
    let wall = Timestamp::from_second(1_700_000_000 + i64::try_from(second).expect("small")).expect("valid");
    Now { wall, since_boot: Duration::from_secs(second) }
}

/// A worker with and without a full disk, told as the agent does, each second.
struct Worker {
    beliefs: Beliefs,
    tell: watch::Sender<Option<Told>>,
    keep: watch::Sender<Option<Kept>>,
}

impl Worker {
    fn second(&mut self, second: u64, full: bool) {
        let answers: Vec<_> = checks::node::ALL
            .iter()
            .map(|check| match check.code {
                "DiskFull" if full => (*check, Outcome::Findings(vec![Finding::new("/", "/ is full")])),
                _ => (*check, Outcome::Healthy),
            })
            .collect();
        let verdict = self.beliefs.step(&answers, at(second));
        let [hostname, boot_id, machine_id, kernel] = ["n1", "b", "m", "6"].map(str::to_owned);
        let identity = Identity { hostname, boot_id, machine_id, kernel, node_name: None };
        let new = told(&verdict, &identity, self.beliefs.episodes());
        let episodes = self.beliefs.episodes();
        self.keep.send_if_modified(|old| {
            let said = old.as_ref().is_some_and(|old| old.says(&verdict, &new.conditions, "b", episodes, None));
            if !said {
                *old = Some(Kept::new(&verdict, new.conditions.clone(), "b", episodes.clone(), Past::default()));
            }
            !said
        });
        self.tell.send_if_modified(|old| {
            let different = old.as_ref() != Some(&new);
            *old = Some(new);
            different
        });
    }
}

/// Ends of connections with this port that are open. The descriptors of other tests in the same process are not these.
fn open_ends(port: u16) -> usize {
    const TIME_WAIT: &str = "06";
    let (table, port) = (std::fs::read_to_string("/proc/thread-self/net/tcp").expect("procfs"), format!(":{port:04X}"));
    let open = |line: &&str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        fields[1..3].iter().any(|end| end.ends_with(&port)) && fields[3] != TIME_WAIT
    };
    table.lines().skip(1).filter(open).count()
}

#[tokio::test(start_paused = true)]
async fn an_hour_without_an_api_server_loses_no_transition_and_grows_nothing() {
    let (server, way, address, mut serving) = served(json!({"conditions": []})).await;
    let (tell, told) = watch::channel(None);
    let writer = Writer::new(vec![way], "n1".into(), told, Arc::default(), 0);
    let fates = writer.fates();
    tokio::spawn(writer.run());
    let directory = tempfile::tempdir().expect("a directory");
    let keep = state_file::start(Some(directory.path().to_owned()));
    let mut worker = Worker { beliefs: Beliefs::default(), tell, keep };
    // Full for the first 100 s of every ten minutes, and at last for good.
    let full = |second: u64| second >= 600 && (second % 600 < 100 || second >= 3600);
    let mut before = 0;
    for second in 0..4190 {
        match second {
            300 => {
                assert_eq!(locked(&server).condition("CapacityProblem")["status"], "False");
                before = open_ends(address.port());
                locked(&server).answers = false;
            }
            // Nobody listens any more.
            2100 => serving.abort(),
            3900 => {
                let listener = TcpListener::bind(address).await.expect("the same port");
                locked(&server).answers = true;
                serving = tokio::spawn(serve(listener, Arc::clone(&server)));
            }
            _ => {}
        }
        worker.second(second, full(second));
        tokio::time::sleep(Duration::from_secs(1)).await;
        if second == 3890 {
            let failed = fates.failed();
            assert!((40..=200).contains(&failed), "{failed} tries in an hour");
            let now = open_ends(address.port());
            assert!(before > 0 && now <= before + 2, "{before} open ends before, {now} now");
            let kept = state_file::load(directory.path()).await.expect("local first");
            let told: Vec<_> = kept.episodes.iter().map(|it| (it.since, it.cleared.is_some())).collect();
            let made = [600, 1200, 1800, 2400, 3000, 3600].map(|second| (at(second).wall, second < 3600));
            assert_eq!(told, made, "every fault is in the journal on the disk");
        }
    }
    let server = locked(&server);
    let condition = server.condition("CapacityProblem");
    let since = condition["lastTransitionTime"].as_str().expect("a time").parse::<Timestamp>().expect("a time");
    let after = since.duration_since(at(3600).wall).as_secs();
    assert!(
        condition["status"] == "True" && (0..60).contains(&after),
        "its own time, not that of the write: {condition}"
    );
    assert_eq!(server.patches, 2, "one at the beginning, and one for the whole hour");
    let episodes: Value =
        serde_json::from_str(server.node["metadata"]["annotations"]["nodevitals.dev/episodes"].as_str().expect("text"))
            .expect("JSON");
    assert_eq!(episodes.as_array().map(Vec::len), Some(5), "{episodes}");
    assert_eq!(episodes[4]["since"], json!(at(600).wall));
    serving.abort();
}

/// A server with a Node, the way to it, and what serves.
async fn served(status: Value) -> (Shared, Api, SocketAddr, JoinHandle<()>) {
    let node = json!({"metadata": {"resourceVersion": "1", "annotations": {}}, "status": status});
    let server = Server { node, answers: true, refuses: None, requests: 0, patches: 0, version: 1 };
    let server: Shared = Arc::new(Mutex::new(server));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let url = format!("http://{address}").parse().expect("a URL");
    let serving = tokio::spawn(serve(listener, Arc::clone(&server)));
    (server, Api::from_config(kube::Config::new(url)).expect("a client"), address, serving)
}

async fn waits_for_its_turn_and_writes_the_latest_truth_once(mapped: usize, agents: usize) {
    // Whatever it is asked for the server answers with one object, which so is the DaemonSet too.
    let (server, way, _, serving) = served(json!({"conditions": [], "desiredNumberScheduled": agents})).await;
    let (tell, told) = watch::channel(None);
    let pace = Pace::new(Arc::new(move || mapped), "/apis/apps/v1/namespaces/n/daemonsets/d".into(), 200);
    tokio::spawn(Writer::new(vec![way], "n1".into(), told, Arc::default(), 0).among(pace).run());
    // It begins before there is a verdict.
    tokio::time::sleep(Duration::from_millis(10)).await;
    let mut worker = Worker { beliefs: Beliefs::default(), tell, keep: watch::channel(None).0 };
    for second in 0..20 {
        worker.second(second, second >= 5);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(locked(&server).patches, 0, "its turn has not come");
    for _ in 0..11 {
        tokio::time::sleep(Duration::from_secs(700)).await;
    }
    let server = locked(&server);
    assert_eq!((server.patches, server.condition("CapacityProblem")["status"].clone()), (1, json!("True")));
    serving.abort();
}

// More than an hour for all, so that hardly any turn comes within the first seconds.

#[tokio::test(start_paused = true)]
async fn one_of_many_nodes_of_the_map_waits_for_its_turn() {
    waits_for_its_turn_and_writes_the_latest_truth_once(1_000_000, 1).await;
}

#[tokio::test(start_paused = true)]
async fn one_of_many_agents_that_start_without_a_map_waits_for_its_turn() {
    waits_for_its_turn_and_writes_the_latest_truth_once(0, 1_000_000).await;
}

#[tokio::test(start_paused = true)]
async fn a_heartbeat_may_be_rarer_than_the_reads_between() {
    let (server, way, _, serving) = served(json!({"conditions": []})).await;
    let (tell, told) = watch::channel(None);
    tokio::spawn(Writer::new(vec![way], "n1".into(), told, Arc::default(), 300).run());
    let mut worker = Worker { beliefs: Beliefs::default(), tell, keep: watch::channel(None).0 };
    worker.second(0, false);
    for _ in 0..2_000 {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let patches = locked(&server).patches;
    assert!((6..=7).contains(&patches), "the first, and one each 300 s: {patches}");
    serving.abort();
}

/// Lets time pass in small steps: while a request is on its way the paused clock goes on to whatever is due next.
async fn pass(seconds: u32) {
    for _ in 0..seconds * 100 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Goes on telling until a patch is refused, and for the 20 s that the server asks for then: nothing is sent, and what is
/// told meanwhile goes with one patch after it.
async fn leaves_the_server_alone(server: &Shared, worker: &mut Worker, mut second: u64) {
    locked(server).refuses = Some(20);
    while locked(server).refuses.is_some() {
        worker.second(second, false);
        second += 1;
        pass(1).await;
    }
    // That was within the last second.
    let requests = locked(server).requests;
    let patches = locked(server).patches;
    for _ in 0..19 {
        worker.second(second, true);
        second += 1;
        pass(1).await;
        assert_eq!(locked(server).requests, requests, "{second}");
    }
    pass(5).await;
    let server = locked(server);
    assert_eq!((server.requests, server.patches), (requests + 2, patches + 1), "one read and one patch");
    assert_eq!(server.condition("CapacityProblem")["status"], "True", "the latest truth");
}

#[tokio::test(start_paused = true)]
async fn a_wait_that_is_asked_for_is_kept_after_a_patch_and_after_a_heartbeat() {
    for heartbeat in [0, 40] {
        let (server, way, _, serving) = served(json!({"conditions": []})).await;
        let (tell, told) = watch::channel(None);
        tokio::spawn(Writer::new(vec![way], "n1".into(), told, Arc::default(), heartbeat).run());
        let mut worker = Worker { beliefs: Beliefs::default(), tell, keep: watch::channel(None).0 };
        if heartbeat > 0 {
            // The first patch is taken, and there is nothing more to write: the next is a heartbeat.
            worker.second(0, false);
            pass(5).await;
            assert_eq!(locked(&server).patches, 1);
        }
        leaves_the_server_alone(&server, &mut worker, 5).await;
        serving.abort();
    }
}

/// A server with such a Node, a writer for it, and what that tells of it.
async fn reading(status: Value) -> (Shared, Writer, watch::Receiver<Seen<Writes>>, JoinHandle<()>) {
    let (server, way, _, serving) = served(status).await;
    let told = Told { conditions: Vec::new(), annotations: std::collections::BTreeMap::new() };
    let writer = Writer::new(vec![way], "n1".into(), watch::channel(Some(told)).1, Arc::default(), 0);
    let seen = writer.writes();
    (server, writer, seen, serving)
}

#[tokio::test(start_paused = true)]
async fn what_the_kubelet_says_is_read_along_and_again_soon_while_it_is_bad() {
    let ready = |status: &str, message: &str, heartbeat: &str| {
        json!([
            { "type": "Ready", "status": status, "reason": "R", "message": message,
              "lastTransitionTime": "2026-11-21T02:59:14Z", "lastHeartbeatTime": heartbeat },
            { "type": "PIDPressure", "status": "False", "reason": "R", "message": "m", "lastTransitionTime": "never" },
            { "type": "CNIProblem", "status": "Odd" },
        ])
    };
    let well = ready("True", "kubelet is posting ready status", "2026-11-21T02:59:20Z");
    let (server, mut writer, mut seen, serving) = reading(json!({"conditions": well})).await;
    writer.read().await.expect("a Node");
    let said = |now: &Seen<Writes>| now.get().and_then(|it| it.said.clone()).expect("it was read");
    let well = said(&seen.borrow_and_update());
    assert!(well.is_well() && well.of("CNIProblem").is_none() && well.conditions.len() == 2, "{well:?}");
    assert_eq!(
        (well.of("PIDPressure").expect("there").since, well.of("Ready").expect("there").message.len()),
        (None, 31)
    );
    locked(&server).node["status"]["conditions"] = ready("True", "still", "2026-11-21T03:04:20Z");
    writer.read().await.expect("a Node");
    assert!(!seen.has_changed().expect("a writer"), "a heartbeat is no news");
    locked(&server).node["status"]["conditions"] = ready("False", &"é".repeat(2000), "2026-11-21T03:05:20Z");
    writer.read().await.expect("a Node");
    let bad = said(&seen.borrow_and_update());
    let words = bad.of("Ready").expect("there");
    assert_eq!((bad.is_well(), words.message.chars().count(), words.status.as_str()), (false, 1024, "False"));
    assert!(words.heartbeat > words.since && bad.read_at > well.read_at, "{bad:?}");
    // From now on it runs by itself, and has nothing to write.
    locked(&server).node["status"]["conditions"] = ready("True", "again", "2026-11-21T03:05:30Z");
    let began = Instant::now();
    tokio::spawn(writer.run());
    while !said(&seen.borrow_and_update()).is_well() {
        seen.changed().await.expect("a writer");
    }
    assert!(began.elapsed() <= UNWELL_AGAIN + Duration::from_secs(1), "{:?}", began.elapsed());
    serving.abort();
}

#[tokio::test(start_paused = true)]
async fn what_the_kubelet_says_outlives_an_outage_and_comes_with_each_answer() {
    let ready = |status: &str| json!([{ "type": "Ready", "status": status, "reason": "R", "message": "m" }]);
    let (server, mut writer, seen, serving) = reading(json!({"conditions": ready("False")})).await;
    let well = || seen.borrow().get().map(|it| it.said.as_ref().expect("it was read").is_well());
    writer.read().await.expect("a Node");
    writer.held_up("a patch was not answered".into()).await;
    assert_eq!((writer.is_blocked(), well()), (true, Some(false)));
    locked(&server).answers = false;
    writer.held_up("a patch was not answered".into()).await;
    assert_eq!(well(), None, "reads are not answered either");
    writer.judge(&Ok(NodeNow::default()), Duration::ZERO).await;
    assert_eq!((writer.is_blocked(), well()), (false, Some(false)), "writes are taken again");
    locked(&server).answers = true;
    locked(&server).node["status"]["conditions"] = ready("True");
    writer.probe().await;
    assert_eq!(well(), Some(true), "the answer to a probe is the Node");
    locked(&server).node["status"]["conditions"] = ready("False");
    writer.beat(&Told { conditions: Vec::new(), annotations: std::collections::BTreeMap::new() }).await;
    assert_eq!(well(), Some(false), "and so is that to a heartbeat");
    serving.abort();
}
