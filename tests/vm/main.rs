//! The program on a kernel of its own, in a virtual machine: what the kernel of the machine that runs the tests cannot show.
//!
//! Needs root, what `scripts/setup.sh test` installs, and the program as `scripts/build.sh` makes it.

#[path = "../support/mod.rs"]
mod support;

#[allow(unreachable_pub, reason = "shared by the modules of this target")]
mod machine;
#[allow(unreachable_pub, reason = "shared by the modules of this target")]
mod root;

mod conntrack;
mod disk;
mod ipvs;
mod kernel;
mod memory;
mod shortage;
mod suspend;
mod wireguard;
