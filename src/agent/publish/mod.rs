//! Telling: a verdict becomes conditions and annotations on the Node, by one patch, only on change.

mod node;
mod patch;
mod writer;

pub(crate) use node::{NodeNow, read_node};
pub(crate) use writer::{Fates, Writer};
