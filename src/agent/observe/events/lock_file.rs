//! The lock file of legacy iptables, which tells of no changes itself: whoever changes rules opens this file and takes the
//! lock, and closes it when the change is done. Programs that only read (`iptables-legacy-save`) do not open it.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc::Sender;

use super::directory::{Notices, register, wait};
use super::{Event, Source, forward};

/// The file is made by the first change of this boot; until then it is looked for this often.
const AGAIN: Duration = Duration::from_secs(10);

const CLOSED: AddWatchFlags =
    AddWatchFlags::IN_CLOSE_NOWRITE.union(AddWatchFlags::IN_CLOSE_WRITE).union(AddWatchFlags::IN_DELETE_SELF);

/// Watches the file. Answers why that is not possible.
pub(super) async fn watch(file: PathBuf, events: Sender<Event>) -> io::Error {
    loop {
        match open(&file) {
            Ok(source) => {
                // What happened before the watch was there was not told.
                events.try_send(Event::Legacy).ok();
                let error = forward(source, events.clone()).await;
                if error.kind() != io::ErrorKind::NotFound {
                    return error;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return error,
        }
        tokio::time::sleep(AGAIN).await;
    }
}

fn open(file: &Path) -> io::Result<LockFile> {
    let notices = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
    notices.add_watch(file, CLOSED)?;
    Ok(LockFile(register(notices)?))
}

struct LockFile(AsyncFd<Notices>);

impl Source for LockFile {
    async fn next(&mut self) -> io::Result<Event> {
        if wait(&self.0).await? { Err(io::ErrorKind::NotFound.into()) } else { Ok(Event::Legacy) }
    }
}
