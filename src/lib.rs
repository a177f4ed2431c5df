//! NodeVitals tells what is wrong with a Kubernetes worker, why, since when, and what to do next.
//!
//! The flow, one way:
//!
//! ```text
//! kernel, CRI, CNI files ─▶ facts ─▶ checks ─▶ findings ─▶ verdict ─▶ publish ─▶ Node object ─▶ aggregator ─▶ report
//!      agent::observe        (plain)   (pure)               (pure)     agent::publish             (reads the API)
//! ```
//!
//! [`facts`], [`checks`] and [`verdict`] are pure: no clock, no files, no network. Only [`agent`] and [`aggregator`]
//! touch the world, each through private rooms of its own.

pub mod facts;

pub mod checks;

pub mod verdict;

pub mod config;

pub mod agent;

pub mod aggregator;

pub mod cli;

mod api;
mod backoff;
mod bundle;
mod clock;
mod events;
mod http;
mod kubeconfig;
mod telemetry;
mod yaml;

#[cfg(any(test, fuzzing))]
pub mod fuzzing;

#[cfg(test)]
mod manifests;

#[cfg(test)]
mod readme;
