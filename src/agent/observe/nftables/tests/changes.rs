//! Rules that change while they are read, and looks that end in the middle.

use std::sync::Arc;

use super::super::*;
use super::{look, recorded, services, targets};
use crate::agent::observe::netns::NetNs;

#[test]
fn a_look_during_changes_is_whole_or_fails() {
    let node = recorded();
    let expected = look(&node).tables;
    let change = || {
        for _ in 0..30 {
            node.command("iptables-nft", &["-t", "nat", "-N", "KUBE-SVC-TEST"]);
            node.command("iptables-nft", &["-t", "nat", "-X", "KUBE-SVC-TEST"]);
        }
    };
    std::thread::scope(|scope| {
        let changes = scope.spawn(change);
        node.block_on(|| async {
            let mut source = NftablesSource::open().expect("open");
            while !changes.is_finished() {
                match source.look().await {
                    Ok(ruleset) => assert_eq!(without_test_chain(ruleset.tables, &expected), expected),
                    Err(error) => assert!(error.detail.starts_with("changed while it was read"), "{error}"),
                }
            }
        });
    });
}

/// Two base chains of which always exactly one jumps; `to` says which, in one commit.
fn move_jump(node: &NetNs, to: &str) {
    let rules = format!("flush chain ip t a; flush chain ip t b; add rule ip t {to} jump x");
    node.command("nft", &[&rules]);
}

fn two_chains() -> NetNs {
    let node = NetNs::new();
    let base = "type filter hook input priority 0; policy accept;";
    let rules = format!("table ip t {{ chain x {{ }}; chain a {{ {base} jump x; }}; chain b {{ {base} }}; }}");
    node.command_with_input("nft", &["-f", "-"], &rules);
    node
}

#[test]
fn what_is_changed_in_the_middle_is_read_again() {
    let node = Arc::new(two_chains());
    node.block_on(|| async {
        let mut source = NftablesSource::open().expect("open");
        let (changer, mut dumps) = (Arc::clone(&node), 0);
        source.before_dump = Box::new(move || {
            dumps += 1;
            // Tables, chains, rules of `a`: here, between the two chains.
            if dumps == 4 {
                move_jump(&changer, "b");
            }
        });
        let ruleset = source.look().await.expect("look");
        assert_eq!(targets(&ruleset, "t", "a"), []);
        assert_eq!(targets(&ruleset, "t", "b"), [(0, "x")]);
    });
}

#[test]
fn what_never_stops_changing_is_an_error() {
    let node = Arc::new(two_chains());
    node.block_on(|| async {
        let mut source = NftablesSource::open().expect("open");
        let changer = Arc::clone(&node);
        source.before_dump = Box::new(move || move_jump(&changer, "b"));
        let error = source.look().await.expect_err("it changes");
        assert_eq!(error.reason, Reason::Failed);
        assert_eq!(error.to_string(), "nf_tables: changed while it was read, 3 times in a row");
    });
}

/// The tables without the one chain more that they may have.
fn without_test_chain(mut tables: Vec<Table>, expected: &[Table]) -> Vec<Table> {
    for table in &mut tables {
        let before = expected.iter().find(|it| it.name == table.name).expect("the same tables");
        if table.per_object_chains == before.per_object_chains + 1 {
            table.per_object_chains -= 1;
        }
    }
    tables
}

#[test]
fn a_look_that_was_cancelled_does_not_spoil_the_next() {
    let node = NetNs::new();
    node.command_with_input("iptables-nft-restore", &[], &services(1000));
    node.block_on(|| async {
        let mut source = NftablesSource::open().expect("open");
        for polls in 1..20 {
            let mut look = Box::pin(source.look());
            for _ in 0..polls {
                if futures::poll!(&mut look).is_ready() {
                    break;
                }
            }
            drop(look);
            source.last = None;
        }
        // In the middle of a dump, not only before it.
        let mut messages = 0;
        let stop = |_, _: &[u8]| {
            messages += 1;
            if messages > 10 { Err(Malformed("enough")) } else { Ok(()) }
        };
        assert!(source.netlink.ask(wire::GET_CHAIN, NLM_F_DUMP, &wire::ALL, stop).await.is_err());
        assert_eq!(source.look().await.expect("look").tables[0].per_object_chains, 2000);
    });
}
