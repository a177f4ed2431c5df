//! One node: look, judge, believe, tell.

mod announce;
mod erase;
mod evidence;
mod judge;
mod metrics;
mod observe;
mod once;
mod options;
mod pages;
mod past;
mod publish;
mod resume;
mod run;
mod watch;
mod watchdog;

pub(crate) use erase::{Erased, erase};
pub(crate) use evidence::{Depth, Gatherer, run_program};
pub(crate) use judge::{Judge, Report};
#[cfg(any(test, fuzzing))]
pub(crate) use observe::fuzzing;
#[cfg(test)]
pub(crate) use observe::read_rule;
pub(crate) use observe::{HostRoot, identity};
pub(crate) use once::{judge_again, look_once};
pub use options::Options;
pub(crate) use options::PORT;
pub(crate) use pages::AgentPages;
pub(crate) use publish::{Cleaned, clean_node};
pub(crate) use run::ended;
pub use run::run;
pub(crate) use watch::{Tell, Watched, start, watch_node};
pub(crate) use watchdog::Heart;
