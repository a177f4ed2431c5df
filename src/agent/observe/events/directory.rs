//! Changes of a directory that may not exist yet, or not any more.

use std::io;
use std::os::fd::{AsFd as _, AsRawFd, RawFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, InotifyEvent};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc::Sender;

use super::{Event, Source, forward};

/// What can change which configurations there are, and what is in them.
const CHANGES: AddWatchFlags = AddWatchFlags::IN_CLOSE_WRITE
    .union(AddWatchFlags::IN_MOVED_TO)
    .union(AddWatchFlags::IN_MOVED_FROM)
    .union(AddWatchFlags::IN_DELETE)
    .union(AddWatchFlags::IN_CREATE)
    .union(AddWatchFlags::IN_ATTRIB)
    .union(GONE);

/// What is watched is no longer where it was.
pub(super) const GONE: AddWatchFlags = AddWatchFlags::IN_DELETE_SELF
    .union(AddWatchFlags::IN_MOVE_SELF)
    .union(AddWatchFlags::IN_IGNORED)
    .union(AddWatchFlags::IN_UNMOUNT);

/// What can make a directory appear in its parent.
const APPEARS: AddWatchFlags = AddWatchFlags::IN_CREATE.union(AddWatchFlags::IN_MOVED_TO).union(GONE);

/// Watches `directory`. Answers why that is not possible.
pub(super) async fn watch(directory: PathBuf, events: Sender<Event>) -> io::Error {
    match Directory::open(directory) {
        Ok(source) => forward(source, events).await,
        Err(error) => error,
    }
}

/// A directory, watched by its path.
struct Directory {
    wanted: PathBuf,
    /// The directory itself, or its nearest parent that exists.
    watched: PathBuf,
    notices: AsyncFd<Notices>,
}

/// Tokio asks for the trait that [`Inotify`] does not have.
pub(super) struct Notices(Inotify);

impl AsRawFd for Notices {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

impl Directory {
    fn open(wanted: PathBuf) -> io::Result<Self> {
        let (watched, notices) = arm(&wanted)?;
        Ok(Directory { wanted, watched, notices })
    }
}

/// Waits for notices; true when one says that what is watched is gone itself.
async fn wait(notices: &AsyncFd<Notices>) -> io::Result<bool> {
    Ok(read(notices).await?.iter().any(|event| event.mask.intersects(GONE)))
}

/// The next notices.
pub(super) async fn read(notices: &AsyncFd<Notices>) -> io::Result<Vec<InotifyEvent>> {
    loop {
        let mut ready = notices.readable().await?;
        // Err means that nothing was there after all.
        if let Ok(events) = ready.try_io(|notices| notices.get_ref().0.read_events().map_err(io::Error::from)) {
            return events;
        }
    }
}

impl Source for Directory {
    async fn next(&mut self) -> io::Result<Event> {
        loop {
            let gone = wait(&self.notices).await?;
            if self.watched == self.wanted && !gone {
                return Ok(Event::Cni);
            }
            let was_wanted = self.watched == self.wanted;
            if gone || nearest(&self.wanted) != self.watched {
                (self.watched, self.notices) = arm(&self.wanted)?;
                if was_wanted || self.watched == self.wanted {
                    return Ok(Event::Cni);
                }
            }
        }
    }
}

/// The directory itself, or the nearest of its parents that exists.
fn nearest(wanted: &Path) -> PathBuf {
    wanted.ancestors().find(|path| path.is_dir()).unwrap_or(Path::new("/")).to_owned()
}

/// A watch on the directory, or on its nearest parent, in which the next part of its path has to appear.
fn arm(wanted: &Path) -> io::Result<(PathBuf, AsyncFd<Notices>)> {
    loop {
        let watched = nearest(wanted);
        let notices = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
        let flags = if watched == wanted { CHANGES } else { APPEARS };
        match notices.add_watch(&watched, flags | AddWatchFlags::IN_ONLYDIR) {
            // What appeared before the watch was there made no notice.
            Ok(_) if nearest(wanted) == watched => return Ok((watched, register(notices)?)),
            // It went between the two calls.
            Ok(_) | Err(Errno::ENOENT | Errno::ENOTDIR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

#[expect(deprecated, reason = "its replacement is unsafe; Notices owns its descriptor and keeps it for its lifetime")]
pub(super) fn register(notices: Inotify) -> io::Result<AsyncFd<Notices>> {
    AsyncFd::with_interest(Notices(notices), Interest::READABLE)
}
