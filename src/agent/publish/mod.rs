//! Telling: a verdict becomes conditions and annotations on the Node, by one patch, only on change.

mod clean;
mod fates;
mod node;
mod patch;
pub(crate) mod state_file;
#[cfg(test)]
mod storm;
mod writer;

pub(crate) use clean::{Cleaned, clean_node};
pub(crate) use fates::Fates;
pub(crate) use node::{NodeNow, read_node};
pub(crate) use state_file::Kept;
pub(crate) use writer::{Pace, Writer};
