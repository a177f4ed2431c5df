//! The program in a network namespace of its own: a real kernel, real rules, real files, no cluster.
//!
//! Needs root and what `scripts/setup.sh test` installs.

#[path = "../support/mod.rs"]
mod support;

#[allow(unreachable_pub, reason = "shared by the modules of this target")]
mod machine;

mod capacity;
mod cni;
mod filter;
mod hooks;
mod numbers;
mod paths;
mod recordings;
mod rules;
mod standalone;
mod usage;
