//! Asks two agents which blocks they route, by their own pages.

use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ipnet::IpNet;
use serde_json::Value;

use super::Question;
use crate::aggregator::store::Store;
use crate::clock::{now, since_boot};
use crate::facts::{BlockSums, Family, part_of};

/// Between two rounds.
const TICK: Duration = Duration::from_secs(10);
/// From the question to the last byte of the answer.
const DEADLINE: Duration = Duration::from_secs(5);
/// Longest answer that is read, in bytes: a quarter of 12,288 blocks of IPv6 needs less.
const LONGEST: usize = 256 << 10;
/// Blocks that are read of an answer.
const MOST: usize = 12_288;

/// Compares and asks for ever.
pub(in crate::aggregator) async fn run(store: &Store, port: u16) -> Infallible {
    let tick = TICK.min(store.lock().cluster.agreement.hold / 3).max(Duration::from_secs(1));
    loop {
        tokio::time::sleep(tick).await;
        for question in store.compare_blocks(now()) {
            let (one, other) = futures::join!(ask(&question, 0, port), ask(&question, 1, port));
            let answer = one.and_then(|one| Ok([one, other?]));
            store.blocks_answered(&question, answer, since_boot());
        }
    }
}

async fn ask(question: &Question, which: usize, port: u16) -> Result<Vec<IpNet>, String> {
    let (node, address): &(String, IpAddr) = &question.nodes[which];
    let family = if question.family == Family::V4 { 4 } else { 6 };
    let path = format!("/blocks?family={family}&parts={:04x}", question.parts);
    let answer = crate::http::get(SocketAddr::new(*address, port), &path, LONGEST, DEADLINE).await;
    let answer = answer.map_err(|error| format!("the agent on {node} cannot be asked: {error}"))?;
    match answer.status {
        200 => read(&answer.body, question).ok_or_else(|| format!("the agent on {node} answers with something else")),
        status => Err(format!("the agent on {node} answers with {status}; it may be an older one")),
    }
}

/// The blocks in an answer. What was not asked for would be compared with nothing.
fn read(body: &str, question: &Question) -> Option<Vec<IpNet>> {
    let body: Value = serde_json::from_str(body).ok()?;
    let blocks = body["blocks"].as_array()?;
    let asked =
        |block: &IpNet| Family::of(block.addr()) == question.family && question.parts & (1 << part_of(*block)) != 0;
    let blocks = blocks.iter().take(MOST).map(|block| block.as_str()?.parse().ok());
    let mut blocks: Vec<IpNet> = blocks.collect::<Option<_>>()?;
    blocks.retain(asked);
    blocks.sort_unstable();
    blocks.dedup();
    Some(blocks)
}

/// What an agent says in the query of its question for the map.
pub(in crate::aggregator) fn told(query: &str) -> impl Iterator<Item = (Family, BlockSums)> {
    query.split('&').filter_map(|part| {
        let (family, sums) = [("v4=", Family::V4), ("v6=", Family::V6)]
            .into_iter()
            .find_map(|(key, family)| Some((family, part.strip_prefix(key)?)))?;
        Some((family, BlockSums::parse(sums)?))
    })
}

/// The fuzz target's door.
#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz(data: &[u8]) {
    let text = &String::from_utf8_lossy(data);
    let nodes = ["a", "b"].map(|name| (name.to_owned(), IpAddr::from([10, 0, 0, 1])));
    let question = Question { family: Family::V4, parts: 0xf00f, nodes };
    assert!(read(text, &question).is_none_or(|blocks| blocks.len() <= MOST));
    assert!(told(text).all(|(_, sums)| BlockSums::parse(&sums.to_string()) == Some(sums)));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn question() -> Question {
        let nodes = ["a", "b"].map(|name| (name.to_owned(), IpAddr::from([10, 0, 0, 1])));
        Question { family: Family::V4, parts: 1 << part_of("10.1.0.0/26".parse().expect("a block")), nodes }
    }

    #[test]
    fn answers_are_read_whole_or_not_at_all() {
        let block: IpNet = "10.1.0.0/26".parse().expect("a block");
        let read = |body: &str| read(body, &question());
        assert_eq!(read(r#"{"blocks":["10.1.0.0/26","10.1.0.0/26","fd00::/122"]}"#), Some(vec![block]));
        assert_eq!(read(r#"{"blocks":[]}"#), Some(vec![]));
        for bad in ["", "<html>", "{}", r#"{"blocks":["10.1.0.0/26",7]}"#, r#"{"blocks":["10.1.0.0/26","x"#] {
            assert_eq!(read(bad), None, "{bad}");
        }
    }

    #[test]
    fn what_else_is_in_the_query_says_nothing() {
        let sums = BlockSums::of(["10.1.0.0/26".parse().expect("a block")]);
        let query = format!("node=n1&v4={sums}&v6=x&v4=&&v5={sums}");
        assert_eq!(told(&query).collect::<Vec<_>>(), [(Family::V4, sums)]);
    }

    proptest::proptest! {
        #[test]
        fn no_answer_is_too_odd(text in "\\PC{0,200}") {
            let _ = read(&text, &question());
            let _ = told(&text).count();
        }
    }
}
