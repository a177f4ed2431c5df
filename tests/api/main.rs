//! The program and its manifests against a real API server, without nodes.
//!
//! Needs root and what `scripts/setup.sh test` installs.

#[path = "../support/mod.rs"]
mod support;

mod bench;
mod browser;
mod objects;

mod agent;
mod aggregator;
mod agreement;
mod causes;
mod changes;
mod denied;
mod events;
mod fit;
mod gateways;
mod gather;
mod integrity;
mod inventory;
mod lasting;
mod map;
mod native_proxy;
mod old_answers;
mod owner;
mod page;
mod plant;
mod policy;
mod reliability;
mod remembered;
mod repair;
mod scope;
mod shared;
mod trees;
mod uninstall;
mod unseen;
mod update;
mod upgrade;
mod usage;
mod ways;
mod webhook;
mod who;
