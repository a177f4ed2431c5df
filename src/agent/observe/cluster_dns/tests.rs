//! A cluster's DNS that answers, over one protocol or both, behind rules as kube-proxy writes them; that hangs, talks nonsense, or is
//! not there.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, UdpSocket};
use std::thread;

use super::*;
use crate::agent::observe::netns::NetNs;

const CLUSTER_IP: &str = "10.96.0.10";
const POD: &str = "10.1.2.3";

/// What somebody says to whoever asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Says {
    /// That there is no such name.
    Well,
    /// The question.
    Echo,
    /// That it has failed.
    Failed,
    /// That it has failed, and the next time that there is no such name.
    FailedOnce,
    Nothing,
}

fn answer(question: &[u8], says: &mut Says) -> Option<Vec<u8>> {
    let mut bytes = question.to_vec();
    let now = *says;
    if now == Says::FailedOnce {
        *says = Says::Well;
    }
    match now {
        Says::Well => {
            bytes[2] |= 0x80;
            bytes[3] = 3;
            Some(bytes)
        }
        Says::Echo => Some(bytes),
        Says::Failed | Says::FailedOnce => {
            bytes[2] |= 0x80;
            bytes[3] = 2;
            Some(bytes)
        }
        Says::Nothing => None,
    }
}

/// A network with the Service's address and a Pod's on it, and who serves at these: over UDP, over TCP.
fn network(at: &str, udp: Option<Says>, tcp: Option<Says>) -> NetNs {
    let net = NetNs::new();
    for address in ["10.0.0.1", POD, at] {
        net.command("ip", &["address", "replace", &format!("{address}/32"), "dev", "lo"]);
    }
    net.command("ip", &["route", "add", "default", "dev", "lo"]);
    let at = (at.to_owned(), ClusterDns::PORT);
    if let Some(mut says) = udp {
        let socket = net.run(|| UdpSocket::bind(at.clone())).expect("a socket");
        // It ends with the process of the tests.
        thread::spawn(move || {
            let mut bytes = [0; 512];
            while let Ok((length, from)) = socket.recv_from(&mut bytes) {
                answer(&bytes[..length], &mut says).map(|answer| socket.send_to(&answer, from));
            }
        });
    }
    if let Some(mut says) = tcp {
        let listener = net.run(|| TcpListener::bind(at)).expect("a socket");
        thread::spawn(move || {
            let mut held = Vec::new();
            while let Ok((mut stream, _)) = listener.accept() {
                let (mut length, mut bytes) = ([0; 2], vec![]);
                stream.read_exact(&mut length).expect("a length");
                bytes.resize(usize::from(u16::from_be_bytes(length)), 0);
                stream.read_exact(&mut bytes).expect("a question");
                if let Some(answer) = answer(&bytes, &mut says) {
                    stream.write_all(&[&length[..], &answer].concat()).expect("it waits for that");
                }
                held.push(stream);
            }
        });
    }
    net
}

fn service() -> DnsService {
    DnsService {
        name: "kube-system/kube-dns".into(),
        address: CLUSTER_IP.parse().expect("an address"),
        protocols: vec!["UDP", "TCP"],
        pods: vec![SocketAddr::new(POD.parse().expect("an address"), ClusterDns::PORT)],
        own_pod: false,
    }
}

fn look(net: &NetNs, source: &mut DnsSource) -> ClusterDns {
    let service = service();
    net.block_on(|| async { source.look(&service, Some(false), None).await.expect("it could ask") })
}

/// Step and kind of each protocol's fault.
fn faults(seen: &ClusterDns) -> Vec<Option<(PathStep, FaultKind)>> {
    seen.ways.iter().map(|way| way.fault.as_ref().map(|fault| (fault.step, fault.kind))).collect()
}

#[test]
fn behind_the_rules_of_kube_proxy_it_answers_and_without_them_it_does_not() {
    let net = network(POD, Some(Says::Well), Some(Says::Well));
    for protocol in ["udp", "tcp"] {
        let rule = ["-p", protocol, "-d", CLUSTER_IP, "--dport", "53", "-j", "DNAT", "--to-destination", "10.1.2.3:53"];
        net.command("iptables-nft", &[&["-t", "nat", "-A", "OUTPUT"][..], &rule].concat());
    }
    let mut source = DnsSource::default();
    let seen = look(&net, &mut source);
    assert_eq!(faults(&seen), [None, None], "{seen:?}");
    assert!(seen.ways.iter().all(|way| way.reached) && seen.missed().next().is_none());
    assert_eq!(seen.ways.iter().map(|way| way.protocol.as_str()).collect::<Vec<_>>(), ["UDP", "TCP"]);
    net.command("iptables-nft", &["-t", "nat", "-F"]);
    net.command("iptables-nft", &["-A", "OUTPUT", "-d", CLUSTER_IP, "-p", "udp", "-j", "REJECT"]);
    net.command("iptables-nft", &["-A", "OUTPUT", "-d", CLUSTER_IP, "-p", "tcp", "-j", "DROP"]);
    let seen = look(&net, &mut source);
    let kinds: Vec<_> = seen.ways.iter().map(|way| way.fault.as_ref().expect("a fault").kind).collect();
    // What a rule of its own rejects the kernel forbids.
    assert_eq!(kinds, [FaultKind::Denied, FaultKind::TimedOut], "{seen:?}");
    assert_eq!(seen.missed().count(), 2, "both answered before");
}

#[test]
fn one_protocol_alone_and_nobody_at_all() {
    let refused = |step| Some((step, FaultKind::Refused));
    for (udp, tcp, expected) in [
        (Some(Says::Well), Some(Says::Well), [None, None]),
        (Some(Says::Well), None, [None, refused(PathStep::Connect)]),
        (None, Some(Says::Well), [refused(PathStep::Dns), None]),
        (None, None, [refused(PathStep::Dns), refused(PathStep::Connect)]),
    ] {
        let seen = look(&network(CLUSTER_IP, udp, tcp), &mut DnsSource::default());
        assert_eq!(faults(&seen), expected, "{udp:?} {tcp:?}");
        assert_eq!(seen.missed().count(), 0, "what has never answered is not missed");
    }
}

#[test]
fn silence_and_nonsense_are_no_answers() {
    let seen = look(&network(CLUSTER_IP, Some(Says::Nothing), Some(Says::Nothing)), &mut DnsSource::default());
    assert_eq!(faults(&seen), [Some((PathStep::Dns, FaultKind::TimedOut)); 2]);
    let seen = look(&network(CLUSTER_IP, Some(Says::Echo), Some(Says::Echo)), &mut DnsSource::default());
    assert_eq!(faults(&seen), [Some((PathStep::Dns, FaultKind::Failed)); 2]);
}

#[test]
fn that_the_server_has_failed_is_an_answer_and_told_beside() {
    let asked = |says, domain: Option<&str>| {
        let (net, service) = (network(CLUSTER_IP, Some(says), Some(says)), service());
        let mut source = DnsSource::default();
        let seen = net.block_on(|| async { source.look(&service, Some(false), domain).await.expect("it could ask") });
        assert_eq!(faults(&seen), [None, None], "{seen:?}");
        assert!(seen.ways.iter().all(|way| way.reached), "the way leads there");
        seen.fails()
    };
    assert!(asked(Says::Failed, Some("example.org")));
    assert!(!asked(Says::FailedOnce, Some("example.org")), "another Pod knows more");
    assert!(!asked(Says::Failed, None), "it may be called otherwise, and somebody outside was asked");
    assert!(!asked(Says::Well, Some("example.org")), "that there is no such name is well");
}

#[test]
fn without_a_route_nothing_is_sent() {
    let seen = look(&NetNs::new(), &mut DnsSource::default());
    assert_eq!(faults(&seen), [Some((PathStep::Route, FaultKind::Unreachable)); 2]);
}

#[test]
fn what_answers_from_this_node_proves_nothing_of_others() {
    let net = network(CLUSTER_IP, Some(Says::Well), Some(Says::Well));
    let mut source = DnsSource::default();
    let service = service();
    let reached = |source: &mut DnsSource, own_pod| {
        let seen =
            net.block_on(|| async { source.look(&service, own_pod, Some("example.org")).await.expect("it could") });
        (seen.own_pod, seen.reached().count())
    };
    assert_eq!(reached(&mut source, Some(true)), (true, 0));
    assert_eq!(reached(&mut source, None), (false, 0), "whose Pods they are is not known yet");
    assert_eq!(reached(&mut source, Some(false)), (false, 2));
    assert_eq!(reached(&mut source, Some(true)), (true, 2), "it stays");
    let known = ["UDP 10.96.0.10", "TCP 10.96.0.11"].map(str::to_owned);
    let mut source = DnsSource::knowing(known.into());
    assert_eq!(reached(&mut source, Some(true)), (true, 1), "of another process, and of this address");
}
