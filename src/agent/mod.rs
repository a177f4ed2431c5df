//! One node: look, judge, believe, tell.

mod announce;
mod evidence;
mod judge;
mod metrics;
mod observe;
mod options;
mod pages;
mod past;
mod publish;
mod run;
mod watchdog;

pub(crate) use evidence::{Depth, Gatherer};
pub(crate) use judge::{Judge, Report};
#[cfg(fuzzing)]
pub(crate) use observe::fuzzing;
#[cfg(test)]
pub(crate) use observe::read_rule;
pub(crate) use observe::{HostRoot, identity};
pub use options::Options;
pub(crate) use pages::AgentPages;
pub(crate) use publish::{Cleaned, clean_node};
pub use run::run;
pub(crate) use run::{Tell, Watched, ended, judge_again, look_once, start, watch_node};
pub(crate) use watchdog::Heart;
