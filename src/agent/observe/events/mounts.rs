//! Changes of the mount table, and errors of ext4: one that turns a file system read-only changes its superblock, which the
//! mount table does not tell of.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use futures::future::{BoxFuture, FutureExt as _, select_all};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc::Sender;

use super::{Event, Source, forward};
use crate::agent::observe::host_root::{HostRoot, open_at_once};

/// One directory for each mounted ext4.
const EXT4: &str = "/sys/fs/ext4";
/// So many of them are watched, each with a descriptor.
const MOST: usize = 32;

/// Watches both. Answers why that is not possible.
pub(super) async fn watch(host: HostRoot, events: Sender<Event>) -> io::Error {
    match Mounts::open(host) {
        Ok(source) => forward(source, events).await,
        Err(error) => error,
    }
}

struct Mounts {
    host: HostRoot,
    table: AsyncFd<File>,
    /// The counter of errors of each ext4, by its device.
    errors: BTreeMap<String, AsyncFd<File>>,
}

impl Mounts {
    fn open(host: HostRoot) -> io::Result<Self> {
        // As the source reads it: in a pod the table of the node's first process.
        let own = host.path("/") == Path::new("/");
        let table = open(&host.path(if own { "/proc/self/mountinfo" } else { "/proc/1/mountinfo" }))?;
        let mut mounts = Mounts { host, table, errors: BTreeMap::new() };
        mounts.list();
        Ok(mounts)
    }

    /// Opens the counters of what has been mounted, and closes those of what has not any more.
    fn list(&mut self) {
        let entries = std::fs::read_dir(self.host.path(EXT4)).into_iter().flatten().flatten();
        let names: Vec<String> = entries.filter_map(|entry| entry.file_name().into_string().ok()).take(MOST).collect();
        self.errors.retain(|name, _| names.contains(name));
        for name in names {
            if self.errors.contains_key(&name) {
                continue;
            }
            let counter = open(&self.host.path(&format!("{EXT4}/{name}/errors_count")));
            // `features` has no counter; and a counter tells of nothing before it was read.
            if let Ok(counter) = counter
                && read(&counter)
            {
                self.errors.insert(name, counter);
            }
        }
    }
}

impl Source for Mounts {
    async fn next(&mut self) -> io::Result<Event> {
        let mut waits: Vec<BoxFuture<'_, io::Result<Option<String>>>> = vec![changed(&self.table, None).boxed()];
        waits.extend(self.errors.iter().map(|(name, counter)| changed(counter, Some(name.clone())).boxed()));
        let (which, _, rest) = select_all(waits).await;
        drop(rest);
        // Reading it arms it again; the counter of a file system that is gone cannot be read.
        if let Some(name) = which?
            && !self.errors.get(&name).is_some_and(read)
        {
            self.errors.remove(&name);
        }
        self.list();
        Ok(Event::Mounts)
    }
}

async fn changed(file: &AsyncFd<File>, name: Option<String>) -> io::Result<Option<String>> {
    file.ready(Interest::PRIORITY).await?.clear_ready();
    Ok(name)
}

fn read(counter: &AsyncFd<File>) -> bool {
    counter.get_ref().read_at(&mut [0; 32], 0).is_ok()
}

#[expect(deprecated, reason = "its replacement is unsafe; a File owns its descriptor and keeps it for its lifetime")]
fn open(path: &Path) -> io::Result<AsyncFd<File>> {
    AsyncFd::with_interest(open_at_once(path)?, Interest::PRIORITY)
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    fn run(line: &str) -> String {
        let output = Command::new("sh").args(["-c", line]).output().expect("a shell");
        assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    #[tokio::test]
    async fn a_mount_and_an_error_of_ext4_are_told() {
        const PATIENCE: Duration = Duration::from_secs(10);
        let dir = tempfile::tempdir().expect("a temporary directory");
        let place = dir.path().display();
        run(&format!("truncate -s 8M {place}/disk && mkfs.ext4 -q {place}/disk && mkdir {place}/mount"));
        let mut mounts = Mounts::open(HostRoot::new("/")).expect("procfs");
        run(&format!("mount -o loop {place}/disk {place}/mount"));
        let device = run(&format!("findmnt -no SOURCE {place}/mount"));
        let name = device.trim_start_matches("/dev/").to_owned();
        let told = timeout(PATIENCE, async {
            while !mounts.errors.contains_key(&name) {
                assert_eq!(mounts.next().await.expect("an event"), Event::Mounts);
            }
        });
        let told = told.await.is_ok();
        // The counter alone: other mounts of this machine come and go.
        let counted = mounts.errors.get(&name).map(|counter| changed(counter, Some(name.clone())));
        run(&format!("echo nodevitals-test > /sys/fs/ext4/{name}/trigger_fs_error"));
        let counted = match counted {
            Some(counted) => timeout(PATIENCE, counted).await.is_ok(),
            None => false,
        };
        run(&format!("umount {place}/mount"));
        assert!(told, "the mount");
        assert!(counted, "the error");
    }
}
