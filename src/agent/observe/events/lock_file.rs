//! The lock file of legacy iptables, which tells of no changes itself: whoever changes rules opens this file and takes the
//! lock, and closes it when the change is done. Programs that only read (`iptables-legacy-save`) do not open it.

use std::io;
use std::time::{Duration, Instant};

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::io::unix::AsyncFd;

use super::directory::{GONE, Notices, read, register};
use crate::agent::observe::blocking::Blocking;
use crate::agent::observe::host_root::HostRoot;
use crate::agent::observe::legacy::{By, LockUses};
use crate::agent::observe::xtables_lock::{PATH, is_routine};

/// The file is made by the first change of this boot; until then it is looked for this often.
const AGAIN: Duration = Duration::from_secs(10);
/// Nobody knows how long the lock was used before it was watched.
const LONG: Duration = Duration::from_secs(3600);
/// For `/proc/locks`.
const DEADLINE: Duration = Duration::from_secs(1);

const CLOSED: AddWatchFlags = AddWatchFlags::IN_CLOSE_NOWRITE.union(AddWatchFlags::IN_CLOSE_WRITE);

/// Where the lock is watched, and who wants to know.
pub(crate) struct Watched {
    pub(crate) host: HostRoot,
    pub(crate) uses: LockUses,
}

/// Watches the file. Answers why that is not possible.
pub(super) async fn watch(watched: Watched) -> io::Error {
    loop {
        match open(&watched.host) {
            Ok(notices) => {
                // What happened before the watch was there was not told.
                watched.uses.add(By::Anybody, LONG);
                if let Err(error) = follow(&watched, &notices).await {
                    return error;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return error,
        }
        tokio::time::sleep(AGAIN).await;
    }
}

fn open(host: &HostRoot) -> io::Result<AsyncFd<Notices>> {
    let notices = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
    notices.add_watch(&host.path(PATH), CLOSED | AddWatchFlags::IN_OPEN | AddWatchFlags::IN_DELETE_SELF)?;
    register(notices)
}

/// Tells of uses until the file is gone.
async fn follow(watched: &Watched, notices: &AsyncFd<Notices>) -> io::Result<()> {
    let blocking = Blocking::default();
    // How many have it open, since when somebody has, and who.
    let (mut users, mut since, mut by) = (0_usize, Instant::now(), None);
    loop {
        let events = read(notices).await?;
        if events.iter().any(|event| event.mask.intersects(GONE)) {
            return Ok(());
        }
        let lost = events.iter().any(|event| event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW));
        let count = |mask| events.iter().filter(|event| event.mask.intersects(mask)).count();
        let (opened, closed) = (count(AddWatchFlags::IN_OPEN), count(CLOSED));
        if users == 0 {
            (since, by) = (Instant::now(), None);
        }
        let before = users;
        users = (users + opened).saturating_sub(closed);
        if opened > 0 {
            // Who came and went between two notices is not known; who is there may be.
            let host = watched.host.clone();
            let known = users > 0
                && (before == 0 || by == Some(By::Routine))
                && blocking.run(PATH, DEADLINE, move || Ok(is_routine(&host))).await.unwrap_or(false);
            by = Some(if known { By::Routine } else { By::Anybody });
        }
        if lost {
            users = 0;
            watched.uses.add(By::Anybody, LONG);
        } else if closed > 0 {
            watched.uses.add(by.unwrap_or(By::Anybody), since.elapsed());
        }
    }
}
