//! The registries of the images in use, and the ways to them.

use serde::Serialize;

use super::{PathEnd, PathLeg};

/// A registry and the ways by which the runtime would pull from it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Registry {
    /// As images name it: `docker.io`.
    pub name: String,
    /// Its mirrors in the order of the runtime's configuration, then itself.
    pub ways: Vec<PathLeg>,
    /// Whether any of them has answered since this agent started. One that never has may never have been meant to.
    pub reached: bool,
    /// Images of it are kept here, and no container is of one.
    pub unused: bool,
}

impl Registry {
    /// Whether a way leads to it. Any HTTP status will do: 401 to somebody without credentials, 429 beyond a rate limit, and
    /// what a registry says of itself are no matters of the network.
    pub fn leads(way: &PathLeg) -> bool {
        matches!(way.end, PathEnd::Answered(_) | PathEnd::Connected)
    }
}
