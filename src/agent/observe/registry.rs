//! The registries of the images in use: whether what the runtime would pull from can be reached.
//!
//! One question without credentials to each, seldom: `GET /v2/`, which counts against no rate limit. Certificates are not
//! judged: the runtime has its own authorities for each registry, and whoever shows one has been reached.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use tokio_rustls::rustls::ClientConfig;
use tokio_rustls::rustls::pki_types::ServerName;

use super::blocking::Blocking;
use super::cri::ImageHost;
use super::host_root::HostRoot;
use super::probe::{self, Depth, Target};
use crate::facts::{LookError, Registry};

mod config;
#[cfg(any(test, fuzzing))]
pub(crate) use config::fuzz;

/// So many registries, and so many ways to each.
const REGISTRIES: usize = 4;
const WAYS: usize = 3;
/// A handful of small files.
const READ: Duration = Duration::from_secs(5);
/// A registry that no container is of an image of is missed for no longer than this. Its images stay until the kubelet wants their
/// room, also those of a registry that is given up; and as long as it can be reached the next outage is told again.
const UNUSED: Duration = Duration::from_secs(24 * 3600);
/// Between two looks: while something that was reached is not, and while all is well.
const AGAIN: [Duration; 2] = [Duration::from_secs(30), Duration::from_secs(300)];

/// Looks at registries.
pub(crate) struct RegistrySource {
    host: HostRoot,
    blocking: Blocking,
    tls: Arc<ClientConfig>,
    reached: BTreeSet<String>,
    /// Those that are neither reached nor used, since when, on the boot clock.
    given_up: BTreeMap<String, Duration>,
}

impl RegistrySource {
    /// Nothing is asked yet.
    pub(crate) fn new(host: HostRoot, blocking: Blocking) -> Self {
        RegistrySource {
            host,
            blocking,
            tls: Arc::new(probe::any_certificate()),
            reached: BTreeSet::new(),
            given_up: BTreeMap::new(),
        }
    }

    /// With those that earlier processes reached.
    pub(crate) fn knowing(self, reached: BTreeSet<String>) -> Self {
        RegistrySource { reached, ..self }
    }

    /// Asks these registries, the first of them; `now` is on the boot clock.
    pub(crate) async fn look(&mut self, hosts: &[ImageHost], now: Duration) -> Result<Vec<Registry>, LookError> {
        let (host, wanted) = (self.host.clone(), hosts.iter().take(REGISTRIES).cloned().collect::<Vec<_>>());
        let read = move || {
            let known = config::Configuration::read(&host);
            Ok(wanted.into_iter().map(|it| (known.ways(&host, &it.name), it)).collect::<Vec<_>>())
        };
        let known = self.blocking.run("configuration of registries", READ, read).await?;
        let registries = known.into_iter().map(|(urls, it)| {
            let ways: Vec<Target> = urls.iter().filter_map(|url| self.target(url)).take(WAYS).collect();
            let blocking = &self.blocking;
            async move {
                let legs = join_all(ways.iter().map(|target| probe::walk(target, Depth::Answer, blocking))).await;
                (it, legs)
            }
        });
        let mut found = Vec::new();
        for (ImageHost { name, used }, mut ways) in join_all(registries).await {
            self.take(&name, used, ways.iter().any(Registry::leads), now);
            // Of no use here, and it would be something new at each look.
            for way in &mut ways {
                way.clock_ahead = None;
            }
            found.push(Registry { reached: self.reached.contains(&name), unused: !used, name, ways });
        }
        // Names that no image bears any more are forgotten.
        let bears = |name: &String| hosts.iter().any(|it| it.name == *name);
        self.reached.retain(bears);
        self.given_up.retain(|name, _| bears(name));
        Ok(found)
    }

    /// Remembers that it was reached, and forgets that after a long time without being reached or used.
    fn take(&mut self, name: &str, used: bool, leads: bool, now: Duration) {
        if leads {
            self.reached.insert(name.to_owned());
        }
        if leads || used {
            self.given_up.remove(name);
        } else if now.saturating_sub(*self.given_up.entry(name.to_owned()).or_insert(now)) >= UNUSED {
            self.reached.remove(name);
        }
    }

    /// How long to wait after this.
    pub(crate) fn wait(seen: &[Registry]) -> Duration {
        let lost = seen.iter().any(|it| it.reached && !it.ways.iter().all(Registry::leads));
        AGAIN[usize::from(!lost)]
    }

    fn target(&self, url: &str) -> Option<Target> {
        let url: http::Uri = url.parse().ok()?;
        let host = url.host()?.trim_matches(['[', ']']).to_owned();
        let plain = url.scheme_str() == Some("http");
        let name = ServerName::try_from(host.clone()).ok()?;
        let port = url.port_u16().unwrap_or(if plain { 80 } else { 443 });
        Some(Target { host, port, tls: (!plain).then(|| (Arc::clone(&self.tls), name)), path: "/v2/" })
    }
}

#[cfg(test)]
mod tests;
