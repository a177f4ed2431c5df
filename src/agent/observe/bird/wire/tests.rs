use proptest::prelude::*;

use super::*;

/// The lines of one answer, fed in pieces of this size.
fn lines(bytes: &[u8], piece: usize) -> Result<(Vec<(u16, String)>, bool), Malformed> {
    let (mut framer, mut found, mut end) = (Framer::default(), Vec::new(), false);
    for bytes in bytes.chunks(piece) {
        let (taken, last) = framer.feed(bytes, &mut |code, text| found.push((code, text.to_owned())))?;
        end |= last;
        if last {
            assert!(taken <= bytes.len());
            break;
        }
        assert_eq!(taken, bytes.len());
    }
    Ok((found, end))
}

fn protocols(bytes: &[u8]) -> Protocols {
    let mut protocols = Protocols::default();
    let (lines, end) = lines(bytes, 100).expect("an answer of BIRD");
    assert!(end, "the answer ends");
    for (code, text) in &lines {
        protocols.line(*code, text);
    }
    protocols
}

/// What a recording of `birdc show protocols all` was on the wire: birdc leaves the codes out.
fn recorded(text: &str) -> Protocols {
    let line = |line: &str| match line.chars().next() {
        None => " \n".to_owned(),
        Some(' ') => format!("1006-{line}\n"),
        Some(_) if line.starts_with("name ") => format!("2002-{line}\n"),
        Some(_) => format!("1002-{line}\n"),
    };
    let wire: String = text.lines().skip(1).map(line).collect();
    protocols(format!("{wire}0000 \n").as_bytes())
}

macro_rules! recording {
    ($name:literal) => {
        recorded(include_str!(concat!("../../../../../tests/recordings/", $name, "-bird-protocols.txt")))
    };
}

fn states(protocols: &Protocols) -> Vec<(&str, BgpState)> {
    protocols.peers.iter().map(|peer| (peer.name.as_str(), peer.state)).collect()
}

/// BIRD 2.0.12, as it was sent.
const TABLE: &[u8] = b"2002-Name       Proto      Table      State  Since         Info\n\
1002-kernel1    Kernel     master4    up     13:29:45.283  \n\
1006-  Channel ipv4\n     State:          UP\n     Routes:         0 imported, 3 exported, 0 preferred\n \n\
1002-device1    Device     ---        up     13:29:45.283  \n \n\
+0000 comes by itself\n\
1002-Mesh_10_0_0_1 BGP        ---        start  13:29:55.202  Active        Socket: Connection refused\n\
1006-  Description:    Connection to BGP peer\n   BGP state:          Active\n     Neighbor address: 10.0.0.1\n     Neighbor AS:      64512\n     Last error:       Socket: Connection refused\n   Channel ipv4\n     State:          DOWN\n \n\
1002-Mesh_10_0_0_3 BGP        ---        up     2026-11-21 13:29:49  Established   \n\
1006-  BGP state:          Established\n     Neighbor address: 10.0.0.3\n     Neighbor AS:      64512\n   Channel ipv4\n     Routes:         1 imported, 2 filtered, 1 exported, 1 preferred\n   Channel ipv6\n     Routes:         4 imported, 5 exported, 1 preferred\n \n\
1002-Off BGP        ---        down   13:30:37.412  \n1006-  BGP state:          Down\n \n0000 \n";

#[test]
fn an_answer_is_the_same_in_pieces_of_any_size() {
    let whole = lines(TABLE, TABLE.len()).expect("an answer");
    assert!(whole.1);
    for piece in 1..80 {
        assert_eq!(lines(TABLE, piece), Ok(whole.clone()), "{piece}");
    }
    assert_eq!(whole.0[2], (1006, "  Channel ipv4".to_owned()));
    assert_eq!(whole.0[3], (1006, "    State:          UP".to_owned()));
    let half = &TABLE[..TABLE.len() / 2];
    assert!(!lines(half, 7).expect("so far").1, "half an answer has no end");
}

#[test]
fn what_comes_after_the_end_is_left() {
    let mut framer = Framer::default();
    let two = b"0016 Access restricted\n0013 Daemon is up and running\n";
    let mut found = Vec::new();
    assert_eq!(framer.feed(two, &mut |code, _| found.push(code)), Ok((23, true)));
    assert_eq!(framer.feed(&two[23..], &mut |code, _| found.push(code)), Ok((30, true)));
    assert_eq!(found, [16, 13]);
}

#[test]
fn who_does_not_speak_as_bird_does_is_refused() {
    for nonsense in
        ["HTTP/1.1 200 OK\n", "\n", " begins in the middle\n", "12\n", "123x-\n", "0000x\n", "1002\u{fffd}\n"]
    {
        assert!(lines(nonsense.as_bytes(), 3).is_err(), "{nonsense:?}");
    }
    assert!(lines(b"8007 Access denied\n", 3).expect("an error").1);
    assert!(lines(b"9001 syntax error\n", 3).expect("an error").1);
    assert!(lines(b"0000\n", 3).expect("no text").1);
}

#[test]
fn an_answer_without_end_and_a_line_without_end_are_cut() {
    let mut framer = Framer::default();
    framer.feed(b"1002-", &mut |_, _| ()).expect("a beginning");
    let chunk = vec![b'x'; 1 << 16];
    let end = (0..1000).find_map(|_| framer.feed(&chunk, &mut |_, _| ()).err());
    assert_eq!(end, Some(Malformed("sends an answer without an end")));
    assert!(framer.line.len() <= LONGEST_LINE);
}

#[test]
fn bird_2_in_channels_and_with_dates() {
    let seen = protocols(TABLE);
    let states = states(&seen);
    let expected =
        [("Mesh_10_0_0_1", BgpState::Active), ("Mesh_10_0_0_3", BgpState::Established), ("Off", BgpState::Down)];
    assert_eq!(states, expected);
    let kernel = &seen.kernels[0];
    assert_eq!((kernel.table.as_str(), kernel.state.as_str(), kernel.exported), ("master4", "up", Some(3)));
    assert_eq!(seen.peers[0].error.as_deref(), Some("Socket: Connection refused"));
    assert_eq!(seen.peers[0].address, Some([10, 0, 0, 1].into()));
    let second = &seen.peers[1];
    assert_eq!((second.imported, second.exported, second.remote_as), (5, 6, Some(64512)));
    assert_eq!(second.since, "2026-11-21 13:29:49");
    assert_eq!(seen.peers[2].error, None);
}

#[test]
fn incidents_02_and_18_before_all_is_well() {
    for seen in [recording!("02-bird-stopped/before"), recording!("18-rolling-restart/before")] {
        assert!(seen.peers.iter().all(BgpPeer::is_established) && seen.peers.len() == 2, "{seen:?}");
        assert!(seen.peers.iter().all(|peer| peer.exported > 0 && peer.error.is_none()));
        assert_eq!(seen.kernels[0].state, "up");
    }
}

#[test]
fn incident_02_a_the_peer_of_a_hung_bird_after_225_seconds() {
    let seen = recording!("02-bird-stopped/stopped-late");
    assert_eq!(states(&seen)[0], ("Mesh_10_77_0_12", BgpState::Idle));
    assert_eq!(seen.peers[0].error.as_deref(), Some("BGP Error: Hold timer expired"));
    assert_eq!((seen.peers[0].restarting, seen.peers[0].imported, seen.kernels[0].exported), (false, 0, Some(2)));
}

#[test]
fn incident_02_b_the_peer_of_a_dead_bird_and_its_graceful_restart() {
    let seen = recording!("02-bird-stopped/killed");
    let peer = &seen.peers[0];
    assert_eq!((peer.state, peer.restarting, peer.imported), (BgpState::Passive, true, 1));
    assert_eq!((peer.error.as_deref(), peer.since.as_str()), (Some("Socket: Connection closed"), "02:42:39"));
    let late = recording!("02-bird-stopped/killed-late");
    assert_eq!((late.peers[0].state, late.peers[0].restarting, late.peers[0].imported), (BgpState::Idle, false, 0));
}

#[test]
fn destinations_of_both_versions() {
    let text = include_str!("../../../../../tests/recordings/02-bird-stopped/before-bird-route.txt");
    let found: Vec<String> =
        text.lines().skip(1).filter_map(|line| destination(ROUTE, line)).map(|it| it.to_string()).collect();
    assert_eq!(found.len(), 10);
    assert!(found.contains(&"172.30.40.128/26".to_owned()) && found.contains(&"0.0.0.0/0".to_owned()));
    let two = "1007-Table master4:\n 10.244.1.0/26        unicast [Mesh_10_0_0_1 13:29:49.231] * (100) [i]\n \tvia 10.0.0.1 on br0\n fd00::/122           unicast [x] * (100)\n0000 \n";
    let (lines, _) = lines(two.as_bytes(), 9).expect("an answer");
    let found: Vec<IpNet> = lines.iter().filter_map(|(code, text)| destination(*code, text)).collect();
    assert_eq!(found, ["10.244.1.0/26", "fd00::/122"].map(|prefix| prefix.parse::<IpNet>().expect("a prefix")));
}

#[test]
fn versions_of_the_greeting() {
    assert_eq!(version("BIRD 1.6.8 ready."), Some("1.6.8"));
    assert_eq!(version("BIRD v2.13.1+ ready."), Some("2.13.1+"));
    assert_eq!(version("FRR"), None);
}

proptest! {
    #[test]
    fn nothing_makes_it_panic(bytes: Vec<u8>, piece in 1_usize..50) {
        lines(&bytes, piece).ok();
    }

    #[test]
    fn nothing_in_a_line_makes_it_panic(rows in proptest::collection::vec("(1002|1006|1007|0024|2002)[- ][ a-z0-9:.,/_%\u{e9}-]{0,60}", 0..20), text: String) {
        let mut protocols = Protocols::default();
        protocols.line(PROTOCOL, &format!("x BGP {text}"));
        protocols.line(PROTOCOL, "x bgp t up 2026-11-21 10:00:00");
        protocols.line(DETAIL, &text);
        for row in rows {
            if let Ok((lines, _)) = lines(format!("{row}\n").as_bytes(), 3) {
                for (code, text) in &lines {
                    protocols.line(*code, text);
                    destination(*code, text);
                }
            }
        }
        since(&text);
        version(&text);
    }
}
