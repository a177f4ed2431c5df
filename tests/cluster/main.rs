//! The whole product on a real cluster: the image that the Dockerfile builds, deployed by `deploy/` on real nodes.
//!
//! Needs root and what `scripts/setup.sh test` installs.

#[path = "../support/mod.rs"]
mod support;

mod harness_smoke;
#[allow(unreachable_pub, reason = "shared by the modules of this target")]
mod needs;
#[allow(unreachable_pub, dead_code, reason = "shared by the modules of this target and with the benchmarks")]
mod product;
mod repair;
mod soak;
mod uninstall;
mod whole;
