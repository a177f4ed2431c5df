//! BIRD, asked over its control sockets, and what the kernel knows about its sessions and its routes.

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::{Duration, Instant};

use ipnet::IpNet;

use self::session::Session;
use self::tcp::TcpSource;
use self::wire::Each;
use super::blocking::Blocking;
use super::host_root::HostRoot;
use crate::facts::{Bgp, BgpState, Bird, BirdDaemon, Family, KernelProtocol, LookError, Reason, Seen};

mod kernel;
mod session;
mod tcp;
mod wire;

/// Calico's sockets, and those of a BIRD of the node itself (facts.md C.4).
const SOCKETS: [(&str, Family); 4] = [
    ("/var/run/calico/bird.ctl", Family::V4),
    ("/var/run/calico/bird6.ctl", Family::V6),
    ("/var/run/bird/bird.ctl", Family::V4),
    ("/var/run/bird/bird6.ctl", Family::V6),
];
/// While `show protocols` says the same, `show protocols all` is asked for this seldom.
const DETAILS: Duration = Duration::from_secs(30);
/// BIRD looks at the kernel's table every 2 s (`scan time` of Calico) and puts back what is missing.
const SCAN: Duration = Duration::from_millis(2500);
/// While the kernel has fewer routes than BIRD, they are compared this often; and this seldom once none was missing: BIRD
/// 1.6 counts more than it has at times (seen with 1.6.8), so its count is no more than a hint.
const COMPARE: Duration = Duration::from_secs(10);
const COMPARE_EQUAL: Duration = Duration::from_secs(300);
/// A BIRD with more routes than this is no Calico's, and its table is not read.
const MOST_ROUTES: u32 = 20_000;
/// So many missing routes are named.
const EXAMPLES: usize = 5;

/// How many routes of BIRD (`RTPROT_BIRD`) the kernel has: IPv4 and IPv6.
pub(crate) type KernelRoutes = Option<[u32; 2]>;

/// Looks at every BIRD of this node, and keeps the sessions and what does not change.
#[derive(Debug)]
pub(crate) struct BirdSource {
    host: HostRoot,
    daemons: Vec<Daemon>,
    tcp: TcpSource,
}

#[derive(Debug)]
struct Daemon {
    socket: &'static str,
    family: Family,
    session: Option<Session>,
    known: Option<Known>,
    answered: bool,
    had_peers: bool,
    /// When to compare its routes with the kernel's, if the counts differ.
    compare_at: Option<Instant>,
    counts: KernelRoutes,
}

/// What it said when it was last asked for everything.
#[derive(Debug)]
struct Known {
    at: Instant,
    table: u64,
    bird: Bird,
}

impl BirdSource {
    /// Nothing is asked yet.
    pub(crate) fn new(host: HostRoot, blocking: Blocking) -> Self {
        let daemon = |(socket, family)| Daemon {
            socket,
            family,
            session: None,
            known: None,
            answered: false,
            had_peers: false,
            compare_at: None,
            counts: None,
        };
        let daemons = SOCKETS.map(daemon).into();
        BirdSource { tcp: TcpSource::new(host.clone(), blocking), host, daemons }
    }

    /// Asks every BIRD whose socket is there. [`Reason::Missing`] when there is none and there never was.
    pub(crate) async fn look(&mut self, kernel: KernelRoutes) -> Result<Bgp, LookError> {
        let host = &self.host;
        let daemons = futures::future::join_all(self.daemons.iter_mut().map(|daemon| daemon.look(host, kernel))).await;
        let daemons: Vec<BirdDaemon> = daemons.into_iter().flatten().collect();
        if daemons.is_empty() {
            return Err(LookError::new("BIRD", Reason::Missing, "there is no control socket"));
        }
        let mut bgp = Bgp { daemons, tcp: Seen::Absent };
        let waits = bgp.peers().any(|peer| !matches!(peer.state, BgpState::Established | BgpState::Down));
        if waits {
            bgp.tcp = self.tcp.look().await.into();
        } else {
            self.tcp.forget();
        }
        Ok(bgp)
    }
}

impl Daemon {
    /// None when there is no such socket and there never was.
    async fn look(&mut self, host: &HostRoot, kernel: KernelRoutes) -> Option<BirdDaemon> {
        let bird: Seen<Bird> = match self.ask(host, kernel).await {
            Ok(bird) => {
                self.answered = true;
                self.had_peers = !bird.peers.is_empty();
                Seen::Yes(bird)
            }
            Err(error) if error.reason == Reason::Missing && !self.answered => return None,
            Err(error) => {
                // A hung one still owes its answer; with any other the conversation is over.
                if error.reason != Reason::TimedOut {
                    self.session = None;
                    self.known = None;
                }
                Seen::Unreadable(error)
            }
        };
        Some(BirdDaemon { socket: self.socket.to_owned(), family: self.family, had_peers: self.had_peers, bird })
    }

    async fn ask(&mut self, host: &HostRoot, kernel: KernelRoutes) -> Result<Bird, LookError> {
        let kept = self.session.is_some();
        let table = match self.table(host).await {
            // It was restarted since: that is no news about the one that runs now.
            Err(error) if kept && error.reason != Reason::TimedOut => {
                self.session = None;
                self.known = None;
                self.table(host).await?
            }
            result => result?,
        };
        let first = self.known.is_none();
        let is_fresh = |known: &Known| known.table == table && known.at.elapsed() < DETAILS && !known.bird.recovering;
        let fresh = self.known.as_ref().is_some_and(is_fresh);
        let fewer = kernel.is_some_and(|counts| self.fewer(counts));
        let due = self.compare_at.is_some_and(|at| at <= Instant::now());
        if !fresh || (fewer && due) {
            self.details(table).await?;
        }
        if self.counts != kernel {
            // BIRD puts back by itself what went.
            self.counts = kernel;
            self.compare_at = Some(Instant::now() + SCAN);
        }
        if first {
            if self.compare().await? > 0 {
                tokio::time::sleep(SCAN).await;
                self.compare().await?;
            }
        } else if kernel.is_some() && !fewer {
            self.forget_missing();
        } else if fewer && due {
            let wait = if self.compare().await? > 0 { COMPARE } else { COMPARE_EQUAL };
            self.compare_at = Some(Instant::now() + wait);
        }
        Ok(self.known.as_ref().map(|known| known.bird.clone()).unwrap_or_default())
    }

    /// The short table, as a number that changes when it does.
    async fn table(&mut self, host: &HostRoot) -> Result<u64, LookError> {
        if self.session.is_none() {
            self.session = Some(Session::open(self.socket, &host.path(self.socket)).await?);
        }
        let mut hasher = DefaultHasher::new();
        self.question("show protocols", &mut |_, text| text.hash(&mut hasher)).await?;
        Ok(hasher.finish())
    }

    async fn question(&mut self, question: &str, each: &mut Each<'_>) -> Result<(), LookError> {
        match &mut self.session {
            Some(session) => session.ask(question, each).await,
            None => Err(LookError::new(self.socket, Reason::Failed, "closed the connection")),
        }
    }

    /// Everything about status and protocols.
    async fn details(&mut self, table: u64) -> Result<(), LookError> {
        let mut recovering = false;
        self.question("show status", &mut |code, _| recovering |= code == RECOVERING).await?;
        let mut protocols = wire::Protocols::default();
        self.question("show protocols all", &mut |code, text| protocols.line(code, text)).await?;
        let version = self.session.as_ref().map(|session| session.version().to_owned()).unwrap_or_default();
        let wire::Protocols { mut kernels, peers, .. } = protocols;
        for kernel in &mut kernels {
            let known = self.known.iter().flat_map(|known| &known.bird.kernels);
            if let Some(before) = known.into_iter().find(|before| before.name == kernel.name) {
                kernel.missing = before.missing;
                kernel.examples.clone_from(&before.examples);
            }
        }
        let bird = Bird { version, recovering, kernels, peers };
        self.known = Some(Known { at: Instant::now(), table, bird });
        Ok(())
    }

    /// Whether the kernel has fewer routes of BIRD than this one has for it.
    fn fewer(&self, counts: [u32; 2]) -> bool {
        let kernels = self.known.iter().flat_map(|known| &known.bird.kernels);
        kernels.into_iter().any(|kernel| {
            let family = self.family_of(&kernel.table);
            kernel.exported.is_some_and(|exported| exported > counts[usize::from(family == Family::V6)])
        })
    }

    fn family_of(&self, table: &str) -> Family {
        if table.contains('6') { Family::V6 } else { self.family }
    }

    fn forget_missing(&mut self) {
        for kernel in self.known.iter_mut().flat_map(|known| &mut known.bird.kernels) {
            kernel.missing = 0;
            kernel.examples.clear();
        }
    }

    async fn missing(&mut self, kernel: &KernelProtocol) -> Result<HashSet<IpNet>, LookError> {
        let mut wanted = HashSet::new();
        self.question(&format!("show route export {}", kernel.name), &mut |code, text| {
            if wanted.len() < MOST_ROUTES as usize {
                wanted.extend(wire::destination(code, text));
            }
        })
        .await?;
        kernel::subtract(self.family_of(&kernel.table), &wanted).await
    }

    /// Compares BIRD's routes with the kernel's, one by one; answers how many are missing.
    async fn compare(&mut self) -> Result<u32, LookError> {
        let kernels = self.known.as_ref().map(|known| known.bird.kernels.clone()).unwrap_or_default();
        let mut total = 0;
        for (position, kernel) in kernels.iter().enumerate() {
            let mut missing = HashSet::new();
            if kernel.exported.is_some_and(|count| (1..=MOST_ROUTES).contains(&count)) {
                missing = match self.missing(kernel).await {
                    Err(error) if error.reason == Reason::TimedOut => return Err(error),
                    result => result.unwrap_or_default(),
                };
            }
            let count = u32::try_from(missing.len()).unwrap_or(u32::MAX);
            total += count;
            let mut examples: Vec<IpNet> = missing.into_iter().collect();
            examples.sort_unstable();
            examples.truncate(EXAMPLES);
            if let Some(known) = &mut self.known {
                known.bird.kernels[position].missing = count;
                known.bird.kernels[position].examples = examples;
            }
        }
        Ok(total)
    }
}

/// Reply of `show status` during the recovery from a graceful restart.
const RECOVERING: u16 = 24;

/// The fuzz target's door.
#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz(data: &[u8]) {
    let Some((which, bytes)) = data.split_first() else { return };
    match which % 4 {
        0 | 1 => {
            // However the bytes are cut into pieces, the lines are the same.
            let lines = |pieces: &[&[u8]]| {
                let (mut framer, mut lines) = (wire::Framer::default(), Vec::new());
                for piece in pieces {
                    let mut each = |code: u16, text: &str| lines.push((code, text.to_owned()));
                    if !matches!(framer.feed(piece, &mut each), Ok((_, false))) {
                        break;
                    }
                }
                lines
            };
            let whole = lines(&[bytes]);
            let (one, two) = bytes.split_at(bytes.len() / 2);
            assert_eq!(whole, lines(&[one, two]));
            let mut protocols = wire::Protocols::default();
            for (code, text) in &whole {
                let _ = (wire::version(text), wire::destination(*code, text));
                protocols.line(*code, text);
            }
        }
        2 => tcp::fuzz(bytes),
        _ => kernel::fuzz(bytes),
    }
}

#[cfg(test)]
mod tests;
