//! Signs of life of agents whose kubelet is silent. In the name of a node anybody may ask for the map, so that a question is
//! only a reason to ask that node's agent itself, whose page nobody else can answer.

use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use futures::stream::{FuturesUnordered, StreamExt as _};

use crate::aggregator::store::Store;
use crate::clock::{now, since_boot};

/// Who is to be asked is looked up this often.
const TICK: Duration = Duration::from_secs(5);
/// From the question to the last byte of the answer, and the longest that is read, in bytes.
const DEADLINE: Duration = Duration::from_secs(5);
const LONGEST: usize = 1024;
/// Agents that are asked in one round: the others are asked in the next ones.
pub(super) const ASKED: usize = 64;

/// Asks for ever.
pub(in crate::aggregator) async fn run(store: &Store, port: u16) -> Infallible {
    loop {
        tokio::time::sleep(TICK).await;
        let mut asked: FuturesUnordered<_> =
            store.claimed(since_boot()).into_iter().map(|(node, address)| answers(node, address, port)).collect();
        while let Some(alive) = asked.next().await {
            if let Some(node) = alive {
                store.heard(&node, now());
            }
        }
    }
}

/// The node, if its agent answers.
async fn answers(node: String, address: IpAddr, port: u16) -> Option<String> {
    let answer = crate::http::get(SocketAddr::new(address, port), "/livez", LONGEST, DEADLINE).await.ok()?;
    (answer.status == 200).then_some(node)
}
