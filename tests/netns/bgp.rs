//! A full mesh of real BIRDs, of version 1.6 and of version 2: the machine under test is 10.0.0.2, so it opens the session
//! with 10.0.0.1 and waits for 10.0.0.3, as in Calico's mesh.

mod own_filter;

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::Child;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::fleet::Fleet;
use crate::machine::{Checked, Machine};
use crate::standalone::Running;
use crate::support::netns::NetNs;
use crate::support::{parts, wait};

const LONG: Duration = Duration::from_secs(60);
const NODE: u8 = 2;
const PEERS: [u8; 2] = [1, 3];

#[derive(Debug, Clone, Copy, PartialEq)]
enum Version {
    One,
    Two,
}

impl Version {
    fn program(self, name: &str) -> Result<PathBuf> {
        match self {
            Version::One => parts::archive(&format!("bird-1.6/usr/sbin/{name}")),
            Version::Two => Ok(PathBuf::from("/usr/sbin").join(name)),
        }
    }
}

/// What Calico's configuration says, with shorter times. `password` is that of all sessions with `protected`.
fn configuration(version: Version, own: u8, scan: u32, password: Option<(u8, &str)>) -> String {
    let two = version == Version::Two;
    let channel = |body: &str| if two { format!("ipv4 {{ {body} }};") } else { body.to_owned() };
    let kernel = channel("import all; export where source != RTS_DEVICE;");
    let mut text = format!(
        "router id 10.0.0.{own};\nprotocol kernel {{ learn; persist; scan time {scan}; graceful restart; {kernel} }}\n\
         protocol device {{ scan time 2; }}\n\
         protocol direct {{ interface \"eth0\", \"br0\"; {} }}\n\
         protocol static {{ {} route 10.244.{own}.0/26 blackhole; }}\n",
        if two { "ipv4;" } else { "" },
        if two { "ipv4;" } else { "" },
    );
    for peer in [1, 2, 3].into_iter().filter(|peer| *peer != own) {
        let passive = if peer > own { "passive on;" } else { "" };
        let recursive = if two { "" } else { "gateway recursive;" };
        let secret = password.filter(|(with, _)| *with == peer);
        let secret = secret.map_or_else(String::new, |(_, secret)| format!("password \"{secret}\";"));
        let routes = channel("import all; export where source = RTS_STATIC;");
        writeln!(
            text,
            "protocol bgp Mesh_10_0_0_{peer} {{ description \"Connection to BGP peer\"; local as 64512; multihop; \
             {recursive} {passive} {secret} connect delay time 1; connect retry time 3; error wait time 1,2; \
             graceful restart; graceful restart time 120; neighbor 10.0.0.{peer} as 64512; {routes} }}"
        )
        .expect("a string takes everything");
    }
    text
}

/// A BIRD that runs.
struct Bird {
    version: Version,
    own: u8,
    child: Child,
    directory: PathBuf,
}

impl Bird {
    fn start(version: Version, own: u8, net: &NetNs, directory: PathBuf) -> Result<Self> {
        std::fs::create_dir_all(&directory)?;
        std::fs::write(directory.join("bird.cfg"), configuration(version, own, 2, None))?;
        let mut command = net.command(version.program("bird")?);
        command.arg("-f").arg("-c").arg(directory.join("bird.cfg")).arg("-s").arg(directory.join("bird.ctl"));
        // Its log is not read.
        command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
        Ok(Bird { version, own, child: command.spawn()?, directory })
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill(Pid::from_raw(self.child.id().try_into()?), signal)?)
    }

    /// birdc talks to it over its socket, which is a file: from any namespace.
    fn tell(&self, command: &[&str]) -> Result<String> {
        let program = self.version.program("birdc")?.display().to_string();
        let socket = self.directory.join("bird.ctl").display().to_string();
        crate::machine::here(&[&[program.as_str(), "-s", &socket], command].concat())
    }

    fn configure(&self, scan: u32, password: Option<(u8, &str)>) -> Result<()> {
        std::fs::write(self.directory.join("bird.cfg"), configuration(self.version, self.own, scan, password))?;
        let said = self.tell(&["configure"])?;
        ensure!(said.contains("econfigur") && !said.contains("rror"), "{said}");
        Ok(())
    }
}

impl Drop for Bird {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// The machine under test and its two peers.
struct Mesh {
    node: Machine,
    bird: Bird,
    peers: [(NetNs, Bird); 2],
}

impl Mesh {
    /// A mesh whose sessions are established.
    fn new(version: Version) -> Result<Self> {
        let node = Machine::worker()?;
        std::fs::create_dir_all(node.path("var"))?;
        std::os::unix::fs::symlink("/run", node.path("var/run"))?;
        node.run(&["ip", "link", "add", "br0", "type", "bridge"])?;
        node.run(&["ip", "address", "add", &format!("10.0.0.{NODE}/24"), "dev", "br0"])?;
        node.run(&["ip", "link", "set", "br0", "up"])?;
        let mut peers = Vec::new();
        for number in PEERS {
            let (peer, port) = (NetNs::new()?, format!("peer{number}"));
            node.net().connect(&port, &peer, "eth0")?;
            node.run(&["ip", "link", "set", &port, "master", "br0"])?;
            peer.exec(&["ip", "address", "add", &format!("10.0.0.{number}/24"), "dev", "eth0"])?;
            let bird = Bird::start(version, number, &peer, node.path(&format!("peer{number}")))?;
            peers.push((peer, bird));
        }
        let bird = Bird::start(version, NODE, node.net(), node.path("run/calico"))?;
        let peers = peers.try_into().ok().context("two peers")?;
        let mesh = Mesh { node, bird, peers };
        wait::eventually("the mesh is established", LONG, || mesh.is_well());
        Ok(mesh)
    }

    /// No finding about BGP, and two sessions.
    fn is_well(&self) -> Result<Checked> {
        let checked = self.node.check()?;
        let codes =
            checked.codes_like("B").into_iter().filter(|code| code.starts_with("Bgp") || code.starts_with("Bird"));
        let codes: Vec<&str> = codes.collect();
        let states: Vec<&Value> =
            bird(&checked)["peers"].as_array().into_iter().flatten().map(|it| &it["state"]).collect();
        ensure!(codes.is_empty() && states == ["Established", "Established"], "{codes:?} {states:?}");
        Ok(checked)
    }

    /// The finding of this code whose detail contains this text, once it is there.
    fn finds(&self, code: &str, text: &str) -> Checked {
        wait::eventually(&format!("{code}: {text}"), LONG, || {
            let checked = self.node.check()?;
            let detail = checked.finding(code)?["detail"].to_string();
            ensure!(detail.contains(text), "{detail}");
            Ok(checked)
        })
    }

    /// Everything is well again.
    fn clears(&self) -> Checked {
        wait::eventually("the mesh is established again", LONG, || self.is_well())
    }

    /// Replaces the peer's filter by this one, in one commit: in a moment without any, a retransmitted SYN would pass.
    fn filter(&self, peer: usize, rules: &str) -> Result<()> {
        self.peers[peer].0.exec(&["sh", "-c", &format!("printf '*filter\n{rules}\nCOMMIT\n' | iptables-restore")])?;
        Ok(())
    }
}

/// What the first BIRD said.
fn bird(checked: &Checked) -> &Value {
    &checked.json["snapshot"]["bgp"]["yes"]["daemons"][0]["bird"]["yes"]
}

/// Runs the test on both versions at once.
fn both(test: impl Fn(Version) -> Result<()> + Sync) -> Result<()> {
    std::thread::scope(|scope| {
        let one = scope.spawn(|| test(Version::One).context("BIRD 1.6"));
        test(Version::Two).context("BIRD 2")?;
        one.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

#[test]
fn bird_hangs_and_goes_on_and_dies() -> Result<()> {
    both(|version| {
        let mut mesh = Mesh::new(version)?;
        let checked = mesh.is_well()?;
        let said = bird(&checked);
        let number = if version == Version::One { "1.6" } else { "2.0" };
        assert!(said["version"].as_str().is_some_and(|it| it.starts_with(number)), "{said}");
        // BIRD 1.6 counts more routes than it has at times, so the count is no more than a hint.
        assert!(said["kernels"][0]["exported"].as_u64() >= Some(3), "{said}");
        assert_eq!((&said["kernels"][0]["state"], &said["kernels"][0]["missing"]), (&"up".into(), &0.into()));
        assert_eq!((&said["peers"][0]["address"], &said["peers"][0]["remoteAs"]), (&"10.0.0.1".into(), &64512.into()));

        mesh.bird.signal(Signal::SIGSTOP)?;
        mesh.finds("BgpDaemonDown", "hangs: /var/run/calico/bird.ctl accepts connections");
        mesh.bird.signal(Signal::SIGCONT)?;
        mesh.clears();

        mesh.bird.child.kill()?;
        mesh.bird.child.wait()?;
        mesh.finds("BgpDaemonDown", "does not run");
        mesh.bird = Bird::start(version, NODE, mesh.node.net(), mesh.node.path("run/calico"))?;
        mesh.clears();
        Ok(())
    })
}

#[test]
fn a_filter_drops_or_rejects_the_port() -> Result<()> {
    both(|version| {
        let mesh = Mesh::new(version)?;
        mesh.filter(0, "-A INPUT -p tcp --dport 179 -j DROP")?;
        mesh.bird.tell(&["restart", "Mesh_10_0_0_1"])?;
        let checked = mesh.finds("BgpPortBlocked", "10.0.0.1 gets no answer on TCP port 179");
        assert_eq!(checked.finding("BgpSessionDown")?["subject"], "Mesh_10_0_0_1");
        assert!(checked.finding("BgpAllSessionsDown").is_err());

        mesh.filter(0, "-A INPUT -p tcp --dport 179 -j REJECT")?;
        let checked = mesh.finds("BgpPortBlocked", "10.0.0.1 refuses TCP port 179 (Socket: Connection refused)");
        assert!(checked.finding("BgpPasswordMismatch").is_err());

        // The other peer's BIRD stops talking: that session was opened by it, so nothing is blocked there.
        mesh.peers[1].1.tell(&["disable", "Mesh_10_0_0_2"])?;
        let checked = mesh.finds("BgpAllSessionsDown", "None of the 2 BGP sessions");
        assert!(checked.finding("BgpSessionDown").is_err(), "told once");

        mesh.filter(0, "")?;
        mesh.peers[1].1.tell(&["enable", "Mesh_10_0_0_2"])?;
        mesh.clears();
        Ok(())
    })
}

#[test]
fn a_password_is_missing_on_either_side_or_differs() -> Result<()> {
    both(|version| {
        let mesh = Mesh::new(version)?;
        let (here, there) = (&mesh.bird, &mesh.peers[1].1);
        here.configure(2, Some((3, "one")))?;
        mesh.finds("BgpPasswordMismatch", "TCPMD5NotFound");
        there.configure(2, Some((NODE, "another")))?;
        mesh.finds("BgpPasswordMismatch", "TCPMD5Failure");
        here.configure(2, None)?;
        let checked = mesh.finds("BgpPasswordMismatch", "TCPMD5Unexpected");
        assert!(!checked.json.to_string().contains("another\""), "no password is told");
        assert_eq!(checked.finding("BgpSessionDown")?["subject"], "Mesh_10_0_0_3");
        here.configure(2, Some((3, "another")))?;
        mesh.clears();
        Ok(())
    })
}

#[test]
fn the_kernel_does_not_get_the_routes() -> Result<()> {
    both(|version| {
        let mesh = Mesh::new(version)?;
        let delete = || mesh.node.run(&["ip", "route", "del", "10.244.1.0/26"]);
        delete()?;
        mesh.clears();
        mesh.bird.tell(&["disable", "kernel1"])?;
        mesh.finds("BirdKernelSyncBroken", "kernel1 is down");
        mesh.bird.tell(&["enable", "kernel1"])?;
        mesh.clears();
        // A BIRD that looks at the kernel's table every ten minutes does not see what goes.
        mesh.bird.configure(600, None)?;
        mesh.clears();
        delete()?;
        mesh.finds("BirdKernelSyncBroken", "lacks a route that BIRD has for it (kernel1): 10.244.1.0/26");
        mesh.bird.configure(2, None)?;
        mesh.clears();
        Ok(())
    })
}

#[test]
fn a_node_of_the_mesh_has_no_session() -> Result<()> {
    const CODE: &str = "BgpMeshIncomplete";
    both(|version| {
        let mesh = Mesh::new(version)?;
        let node = |number: u8, ready: bool| json!({"name": format!("n{number}"), "ready": ready, "addresses": [format!("10.0.0.{number}")]});
        let map = |more: &[Value]| {
            let nodes = [&[1, 2, 3].map(|number| node(number, true)), more].concat();
            json!({"own": "n2", "nodes": nodes, "fullMesh": true})
        };
        let fleet = Fleet::start(&mesh.node, &map(&[]), &[CODE])?;
        fleet.clears(CODE);
        fleet.tell(&map(&[node(4, true)]));
        fleet.raises(CODE, "BIRD has no session with the node n4 (10.0.0.4)");
        // One that is not Ready has perhaps no BIRD, and no mesh has no such session.
        fleet.tell(&map(&[node(4, false)]));
        fleet.clears(CODE);
        fleet.tell(&map(&[node(4, true)]));
        fleet.raises(CODE, "the node n4");
        // confd renders the session: it is there, though not established.
        let known = configuration(version, NODE, 2, None);
        let start = known.find("protocol bgp Mesh_10_0_0_3 ").context("a session")?;
        let more = known[start..].replace("10_0_0_3", "10_0_0_4").replace("10.0.0.3", "10.0.0.4");
        std::fs::write(mesh.bird.directory.join("bird.cfg"), known + &more)?;
        mesh.bird.tell(&["configure"])?;
        fleet.clears(CODE);
        Ok(())
    })
}

#[test]
fn birds_are_restarted_and_nobody_complains() -> Result<()> {
    both(|version| {
        let mut mesh = Mesh::new(version)?;
        let node = |number: u8| {
            json!({"name": format!("n{number}"), "ready": true, "addresses": [format!("10.0.0.{number}")],
                "blocks": [format!("10.244.{number}.0/26")]})
        };
        let pool = json!({"name": "default", "cidr": "10.244.0.0/16"});
        let nodes = [1, 2, 3].map(node);
        let map = json!({"own": "n2", "nodes": nodes, "fullMesh": true, "pools": [pool]});
        let fleet = Fleet::start(&mesh.node, &map, &[])?;
        // An update replaces calico-node on another node, and then on this one.
        for round in 0..2 {
            let bird = if round == 0 { &mut mesh.peers[0].1 } else { &mut mesh.bird };
            bird.child.kill()?;
            bird.child.wait()?;
            std::thread::sleep(Duration::from_secs(5));
            *bird = match round {
                0 => Bird::start(version, PEERS[0], &mesh.peers[0].0, mesh.node.path("peer1"))?,
                _ => Bird::start(version, NODE, mesh.node.net(), mesh.node.path("run/calico"))?,
            };
            std::thread::sleep(Duration::from_secs(2));
            fleet.is_quiet(&["Bgp", "Bird", "RemoteBlock", "BlockBlackhole"])?;
        }
        mesh.clears();
        fleet.is_quiet(&["Bgp", "Bird", "RemoteBlock", "BlockBlackhole"])
    })
}

/// For IPv6 there is a BIRD of its own.
#[test]
fn bird_for_ipv6_loses_its_session_and_hangs() -> Result<()> {
    let (node, peer) = (Machine::worker()?, NetNs::new()?);
    std::fs::create_dir_all(node.path("var"))?;
    std::os::unix::fs::symlink("/run", node.path("var/run"))?;
    node.net().connect("eth1", &peer, "eth1")?;
    let start = |own: u8, net: &NetNs, place: &str| -> Result<Running> {
        let other = 3 - own;
        net.exec(&["ip", "address", "replace", &format!("fd00:10::{own}/64"), "dev", "eth1", "nodad"])?;
        let text = format!(
            "router id 10.0.0.{own};\nprotocol kernel {{ learn; persist; scan time 2; import all; export all; }}\n\
             protocol device {{ scan time 2; }}\nprotocol static {{ route fd00:244:{own}::/64 blackhole; }}\n\
             protocol bgp Mesh_fd00_10__{other} {{ local fd00:10::{own} as 64512; neighbor fd00:10::{other} as 64512; \
             multihop; gateway recursive; connect delay time 1; connect retry time 3; error wait time 1,2; \
             import all; export where source = RTS_STATIC; }}\n"
        );
        node.write(&format!("{place}/bird6.cfg"), text)?;
        let mut command = net.command(Version::One.program("bird6")?);
        command.args(["-f", "-c", &node.place(&format!("{place}/bird6.cfg"))]);
        command.args(["-s", &node.place(&format!("{place}/bird6.ctl"))]);
        Ok(Running(command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null()).spawn()?))
    };
    let own = start(2, node.net(), "run/calico")?;
    let is_well = || -> Result<()> {
        let checked = node.check()?;
        let daemon = &checked.json["snapshot"]["bgp"]["yes"]["daemons"][0];
        let state = &daemon["bird"]["yes"]["peers"][0]["state"];
        ensure!(daemon["family"] == "IPv6" && state == "Established", "{daemon}");
        ensure!(checked.codes_like("Bgp").is_empty() && checked.codes_like("Bird").is_empty(), "{:?}", checked.codes());
        Ok(())
    };
    let has = |code: &str, text: &str| {
        wait::eventually(code, LONG, || {
            let detail = node.check()?.finding(code)?["detail"].to_string();
            ensure!(detail.contains(text), "{detail}");
            Ok(())
        });
    };
    for _ in 0..2 {
        let other = start(1, &peer, "peer")?;
        wait::eventually("the session is established", LONG, is_well);
        drop(other);
        has("BgpPortBlocked", "fd00:10::1 refuses TCP port 179");
    }
    kill(Pid::from_raw(own.0.id().try_into()?), Signal::SIGSTOP)?;
    has("BgpDaemonDown", "bird6.ctl accepts connections");
    Ok(())
}
