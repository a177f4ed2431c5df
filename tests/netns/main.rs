//! The program in a network namespace of its own: a real kernel, real rules, real files, no cluster.
//!
//! Needs root and what `scripts/setup.sh test` installs.

#[path = "../support/mod.rs"]
mod support;

#[allow(unreachable_pub, reason = "shared by the modules of this target")]
mod machine;

#[allow(dead_code, reason = "the unit tests need all of it")]
#[path = "../../src/agent/observe/servers.rs"]
mod servers;

mod bgp;
mod capacity;
mod cni;
mod filter;
#[allow(unreachable_pub, reason = "shared by the modules of this target")]
mod fleet;
mod hangs;
mod hooks;
mod kernel_log;
mod kubelet;
mod links;
mod native_calico;
mod numbers;
mod paths;
mod ports;
#[allow(unreachable_pub, reason = "shared by the modules of this target")]
mod recorded;
mod routes;
mod routine;
mod rules;
mod runtime;
mod standalone;
mod usage;
mod ways;
