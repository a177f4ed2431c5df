//! Evidence on the node: pieces that people read, each with its own deadline and limit, redacted, one after the other.
//!
//! A piece that hangs, is missing or too long costs itself, and the manifest says so. The most volatile comes first.

mod keep;
mod pieces;
mod take;

use std::time::{Duration, Instant};

use jiff::Timestamp;

pub(super) use keep::{FOLDER, is_bundle};
pub(crate) use keep::{Held, Keeper, Kept};
pub(crate) use pieces::Depth;
use pieces::PIECES;
pub(crate) use take::run as run_program;
use take::{Raw, Take};

use super::{HostRoot, Report};
use crate::bundle::{Bundle, FACTS, FactsOut, Item, Manifest, redact};

/// Takes evidence of one node.
#[derive(Debug)]
pub(crate) struct Gatherer {
    take: Take,
    depth: Depth,
    /// So many bytes may still be written.
    room: u64,
}

impl Gatherer {
    /// For a node, with at most so many bytes in all.
    pub(crate) fn new(host: &HostRoot, depth: Depth, room: u64) -> Self {
        Gatherer { take: Take::new(host.clone()), depth, room }
    }

    /// Writes the facts, unless they are there.
    pub(crate) fn facts(&mut self, report: &Report, to: &mut Bundle, manifest: &mut Manifest) -> Item {
        let begun = Instant::now();
        manifest.note(&report.verdict);
        let json = serde_json::to_vec(&FactsOut::of(report)).map_err(|error| error.to_string());
        let item = Item {
            name: FACTS.to_owned(),
            key: "E20-E32".to_owned(),
            of: "all that the checks see".to_owned(),
            ..Item::default()
        };
        self.put(item, begun, json.map(Raw::whole), to, manifest)
    }

    /// Adds a piece that somebody else has taken.
    pub(crate) fn add(
        &mut self,
        item: Item,
        begun: Instant,
        taken: Result<Vec<u8>, String>,
        to: &mut Bundle,
        manifest: &mut Manifest,
    ) -> Item {
        self.put(item, begun, taken.map(Raw::whole), to, manifest)
    }

    /// Takes all pieces that the bundle does not hold yet; `tell` hears of each.
    ///
    /// # Errors
    /// When the bundle cannot be written.
    pub(crate) async fn pieces(
        &mut self,
        to: &mut Bundle,
        manifest: &mut Manifest,
        mut tell: impl FnMut(&Item),
    ) -> std::io::Result<()> {
        let depth = self.depth;
        for piece in PIECES.iter().filter(|piece| piece.is_for(depth)) {
            let listed = Instant::now();
            let all = match self.take.expand(piece).await {
                Ok(all) => all,
                Err(why) => {
                    let item = Item {
                        name: piece.name.to_owned(),
                        key: piece.key.to_owned(),
                        of: piece.of(),
                        ..Item::default()
                    };
                    tell(&self.put(item, listed, Err(why), to, manifest));
                    continue;
                }
            };
            for (name, of) in all.into_iter().filter(|(name, _)| !manifest.has(name)).collect::<Vec<_>>() {
                let begun = Instant::now();
                let raw = self.take.take(piece, &of).await;
                let item = Item { name, key: piece.key.to_owned(), of, ..Item::default() };
                tell(&self.put(item, begun, raw, to, manifest));
                to.mark(manifest)?;
            }
        }
        manifest.ended_at = Some(Timestamp::now());
        Ok(())
    }

    /// Redacts one piece, writes it, and notes what became of it.
    fn put(
        &mut self,
        mut item: Item,
        begun: Instant,
        raw: Result<Raw, String>,
        to: &mut Bundle,
        manifest: &mut Manifest,
    ) -> Item {
        let written = raw.and_then(|raw| {
            let (bytes, redacted) = redact(&raw.bytes);
            if bytes.len() as u64 > self.room {
                return Err(format!("{} bytes are more than the bundle has room for", bytes.len()));
            }
            to.put(&item.name, &bytes).map_err(|error| format!("cannot be written: {error}"))?;
            self.room -= bytes.len() as u64;
            (item.bytes, item.redacted, item.cut) = (bytes.len() as u64, redacted, raw.cut);
            Ok(())
        });
        item.failed = written.err();
        item.millis = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        manifest.put(item.clone());
        item
    }
}

/// Longest wait for one file, and for one program that says nothing else.
const DEADLINE: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests;
