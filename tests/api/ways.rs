//! The ways from the agent's Pod to the API server: the kubelet's, which needs neither kube-proxy nor DNS, and then the Service's.
//! Which is taken first, what becomes of one that is dead or hangs, and that a refusal is none of the way's.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{sleep, spawn};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::agent::{jump, packet_filter, worker_with_chains};
use crate::bench::{AGENT, Bench, Running, soon};
use crate::support::control_plane::ADDRESS;
use crate::support::wait::eventually;

/// A patch is given up after 35 s, and tried again after a minute at most.
const ANOTHER_WAY: Duration = Duration::from_secs(150);
/// How a Pod finds its service account, in a mount namespace where nobody else sees it.
const POD: &str = "mount -t tmpfs tmpfs /run
    mkdir -p /run/secrets/kubernetes.io/serviceaccount
    cp \"$0\"/* /run/secrets/kubernetes.io/serviceaccount/
    exec \"$@\"";

/// What a way does with who comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Leads,
    /// Nobody listens any more.
    Dead,
    /// Who comes is let in, and nothing goes on from there.
    Hangs,
}

/// What both ends of a way know.
#[derive(Debug)]
struct Known {
    state: Mutex<State>,
    over: AtomicBool,
    /// The API server's address to which it leads, which is also the one from which it sees who comes over it.
    leads_to: Ipv4Addr,
}

/// A way to the API server, on a port of its own.
struct Way<'a> {
    bench: &'a Bench,
    port: u16,
    known: Arc<Known>,
}

impl<'a> Way<'a> {
    fn new(bench: &'a Bench, leads_to: Ipv4Addr) -> Result<Self> {
        let state = Mutex::new(State::Leads);
        let known = Arc::new(Known { state, over: AtomicBool::new(false), leads_to });
        let mut way = Self { bench, port: 0, known };
        way.open()?;
        Ok(way)
    }

    /// Listens until it is dead.
    fn open(&mut self) -> Result<()> {
        let (port, known) = (self.port, Arc::clone(&self.known));
        let opened = self.bench.host().run_in_network(move || {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port))?;
            listener.set_nonblocking(true)?;
            let port = listener.local_addr()?.port();
            // Threads are in the network of the thread that starts them.
            spawn(move || known.serve(&listener));
            Ok::<u16, std::io::Error>(port)
        });
        self.port = opened??;
        Ok(())
    }

    fn become_(&mut self, state: State) -> Result<()> {
        let was = self.known.state();
        *self.known.state.lock().unwrap_or_else(PoisonError::into_inner) = state;
        if was == State::Dead {
            self.open()?;
        } else if state == State::Dead {
            soon("nobody listens any more", || {
                let listening = format!("sport = :{}", self.port);
                let listeners = self.bench.exec_in_ns(&["ss", "-Hltn", &listening])?;
                ensure!(listeners.trim().is_empty(), "{listeners}");
                Ok(())
            });
        }
        Ok(())
    }

    /// By the API server's log: whether this write came over it.
    fn led(&self, write: &Value) -> bool {
        write["sourceIPs"] == json!([self.known.leads_to])
    }
}

impl Drop for Way<'_> {
    fn drop(&mut self) {
        self.known.over.store(true, Ordering::Relaxed);
    }
}

impl Known {
    fn state(&self) -> State {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_closed(&self) -> bool {
        self.state() == State::Dead || self.over.load(Ordering::Relaxed)
    }

    fn serve(self: &Arc<Self>, listener: &TcpListener) {
        while !self.is_closed() {
            let Ok((from, _)) = listener.accept() else {
                sleep(Duration::from_millis(10));
                continue;
            };
            let ends = TcpStream::connect((self.leads_to, 6443))
                .and_then(|to| Ok([(from.try_clone()?, to.try_clone()?), (to, from)]));
            for (from, to) in ends.into_iter().flatten() {
                let known = Arc::clone(self);
                // Who breaks off ends it for both.
                spawn(move || known.lead(&from, &to).or_else(|_| to.shutdown(Shutdown::Both)));
            }
        }
    }

    /// Hands on what comes, as long as the way leads somewhere.
    fn lead(&self, mut from: &TcpStream, mut to: &TcpStream) -> std::io::Result<()> {
        from.set_nonblocking(false)?;
        from.set_read_timeout(Some(Duration::from_millis(20)))?;
        let mut bytes = [0; 16384];
        loop {
            match self.state() {
                _ if self.is_closed() => return Err(std::io::ErrorKind::BrokenPipe.into()),
                State::Hangs => sleep(Duration::from_millis(20)),
                _ => match from.read(&mut bytes) {
                    Ok(0) => return Err(std::io::ErrorKind::UnexpectedEof.into()),
                    Ok(count) => to.write_all(&bytes[..count])?,
                    Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                    Err(error) => return Err(error),
                },
            }
        }
    }
}

/// A worker whose kubelet has one way, and whose Pods have the other.
struct Worker<'a> {
    bench: &'a Bench,
    directory: PathBuf,
}

impl<'a> Worker<'a> {
    fn new(bench: &'a Bench, kubelets: &Way) -> Result<Self> {
        let worker = Self { bench, directory: bench.workspace().directory().join("ways") };
        let kubeconfig = json!({"apiVersion": "v1", "kind": "Config", "current-context": "c", "users": [{"name": "u", "user": {}}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
            "clusters": [{"name": "c", "cluster": {"server": format!("https://127.0.0.1:{}", kubelets.port),
                "certificate-authority": "/etc/kubernetes/pki/ca.crt"}}]});
        for (file, text) in [
            ("proc/x", String::new()),
            ("run/x", String::new()),
            ("var/log/x", String::new()),
            ("var/lib/kubelet/config.yaml", r#"{"kind": "KubeletConfiguration", "healthzPort": 0}"#.into()),
            ("etc/kubernetes/kubelet.conf", kubeconfig.to_string()),
            ("etc/kubernetes/pki/ca.crt", fs::read_to_string(bench.ca_path())?),
        ] {
            let path = worker.directory.join("root").join(file);
            fs::create_dir_all(path.parent().context("a parent")?)?;
            fs::write(path, text)?;
        }
        let proc = worker.directory.join("root/proc");
        let proc = proc.to_str().context("a path in UTF-8")?;
        bench.host().read(&["mount", "--rbind", "/proc", proc])?;
        Ok(worker)
    }

    /// The agent of a node with what the kubelet gives to this Pod, where a Service leads over that way.
    fn agent(&self, node: &str, pod: &str, services: &Way) -> Result<Running<'_>> {
        let account = self.directory.join(pod);
        fs::create_dir_all(&account)?;
        fs::write(account.join("token"), self.bench.token("agent", pod)?)?;
        fs::write(account.join("namespace"), "nodevitals")?;
        fs::copy(self.bench.ca_path(), account.join("ca.crt"))?;
        let (account, root) = (account.display().to_string(), self.directory.join("root").display().to_string());
        let port = format!("KUBERNETES_SERVICE_PORT={}", services.port);
        let by = ["env", "KUBERNETES_SERVICE_HOST=127.0.0.1", &port, "unshare", "--mount", "sh", "-ec", POD, &account];
        // The Node has just been made.
        let config = self.bench.config("ways", "settlingSeconds: 0\n")?;
        self.bench.start_by(&by, &["agent", "--node-name", node, "--host-root", &root, "--config", &config])
    }
}

/// The writes of the agents on a Node, the newest last; some.
fn writes(bench: &Bench, node: &str) -> Result<Vec<Value>> {
    let writes = bench.writes_on(node, AGENT)?;
    ensure!(!writes.is_empty(), "nothing was written on {node}");
    Ok(writes)
}

/// Waits until the packet filter's condition of y1 is this, and holds that it was told over that way.
#[track_caller]
fn told_over(bench: &Bench, way: &Way, status: &str, reason: &str) -> Result<()> {
    let name = if way.known.leads_to.is_loopback() { "the Service's way" } else { "the kubelet's way" };
    eventually(&format!("{status} over {name}"), ANOTHER_WAY, || packet_filter(bench, "y1", status, reason));
    let writes = writes(bench, "y1")?;
    let turns = |write: &&Value| {
        let conditions = write["requestObject"]["status"]["conditions"].as_array().into_iter().flatten();
        write["responseStatus"]["code"] == 200
            && conditions.clone().any(|it| it["type"] == "PacketFilterProblem" && it["status"] == status)
    };
    let turned = writes.iter().rev().find(turns).with_context(|| format!("nobody wrote it: {writes:#?}"))?;
    ensure!(way.led(turned), "not over {name}: {turned:#}");
    Ok(())
}

#[test]
fn the_kubelets_way_is_taken_first_and_the_services_when_that_is_dead_or_hangs() -> Result<()> {
    let bench = Bench::take()?;
    let mut kubelets = Way::new(&bench, ADDRESS.parse()?)?;
    let mut services = Way::new(&bench, Ipv4Addr::LOCALHOST)?;
    let worker = Worker::new(&bench, &kubelets)?;
    worker_with_chains(&bench, "y1")?;
    bench.add_node("y2", &json!({}))?;
    let agent = worker.agent("y1", "agent-y1", &services)?;
    told_over(&bench, &kubelets, "False", "PacketFilterHealthy")?;
    let line = agent.said("agent started")?;
    ensure!(line["server"] == format!("https://127.0.0.1:{}/", kubelets.port), "{line}");
    ensure!(writes(&bench, "y1")?.iter().all(|write| kubelets.led(write)), "{:#?}", writes(&bench, "y1")?);

    kubelets.become_(State::Dead)?;
    jump(&bench, "-D")?;
    told_over(&bench, &services, "True", "KubeProxyChainsUnhooked")?;

    // The other way round: what is sent is never answered, over a connection that stands.
    kubelets.become_(State::Leads)?;
    services.become_(State::Hangs)?;
    jump(&bench, "-A")?;
    told_over(&bench, &kubelets, "False", "PacketFilterHealthy")?;

    // None leads anywhere: it goes on to try each, says so, and tells it when one does.
    kubelets.become_(State::Dead)?;
    services.become_(State::Dead)?;
    jump(&bench, "-D")?;
    soon("the finding is raised here", || {
        let page = agent.page("/findings")?;
        ensure!(page.contains("KubeProxyChainsUnhooked"), "{page}");
        Ok(())
    });
    for way in [&kubelets, &services] {
        let server = format!("https://127.0.0.1:{}/", way.port);
        let tried =
            |line: &Value| line["server"] == *server && line.to_string().contains("the API server cannot be reached");
        eventually("each is tried", ANOTHER_WAY, || {
            let log = agent.log()?;
            ensure!(log.iter().any(tried), "{server} is not among {log:#?}");
            Ok(())
        });
    }
    services.become_(State::Leads)?;
    told_over(&bench, &services, "True", "KubeProxyChainsUnhooked")?;
    agent.lives()?;
    drop(agent);
    jump(&bench, "-A")?;

    // A refusal is the API server's own, and the other way leads to no other: it is told, and the way stays.
    kubelets.become_(State::Leads)?;
    let stranger = worker.agent("y2", "agent-y1", &services)?;
    eventually("it is refused again", ANOTHER_WAY, || {
        let log = stranger.log()?;
        let refused = log.iter().filter(|line| line.to_string().contains("no permission: apply deploy/")).count();
        ensure!(refused >= 2, "{log:#?}");
        Ok(())
    });
    for write in writes(&bench, "y2")? {
        ensure!(write["responseStatus"]["code"] == 403 && kubelets.led(&write), "{write:#}");
    }
    stranger.lives()
}
