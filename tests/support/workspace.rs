//! A directory and a cgroup name for one control plane, and the lock that keeps the machine to a few at a time.

use std::{
    env,
    fs::{self, File},
    io,
    os::unix::{fs::DirBuilderExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio, id},
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Context, Result};

/// Under the machine's temporary directory, and the prefix of every cgroup.
const PREFIX: &str = "nodevitals-test";

/// Where control planes of one kind run: as many side by side as there are places, of all test processes with this
/// temporary directory.
#[derive(Clone, Copy)]
pub struct Places {
    kind: &'static str,
    /// So many.
    pub count: usize,
}

impl Places {
    /// A control plane alone waits for its API server, for timers and for hold-downs, and takes a third of a core.
    pub const ALONE: Self = Self { kind: "api", count: 3 };
    /// One with nodes fills a machine of two cores.
    pub const WITH_NODES: Self = Self { kind: "cluster", count: 1 };

    /// A place that nobody has, with the lock that says so.
    fn take(self, parent: &Path) -> Result<(String, File)> {
        let mut waits = false;
        loop {
            for number in 0..self.count {
                let place = format!("{}{number}", self.kind);
                let path = parent.join(format!("lock-{place}"));
                let lock = File::create(&path).with_context(|| path.display().to_string())?;
                if lock.try_lock().is_ok() {
                    return Ok((place, lock));
                }
            }
            if !waits {
                eprintln!("waiting for another test's control plane to end");
                waits = true;
            }
            thread::sleep(Duration::from_millis(200));
        }
    }
}

/// Removes the directory and the cgroups as soon as the test process is gone, killed or not. The lock of the place is its
/// standard output, so the next control plane gets it only when this is done.
const JANITOR: &str = r#"
read -r _
for _ in {1..150}; do
  rm -rf "$1" 2>/dev/null
  find /sys/fs/cgroup/ -depth -type d -path "*/$2*" -exec rmdir {} + 2>/dev/null
  [ -e "$1" ] || [ -n "$(find /sys/fs/cgroup/ -type d -name "$2*" -print -quit)" ] || exit 0
  sleep 0.1
done
"#;

/// Where one control plane and its nodes keep their files.
pub struct Workspace {
    id: String,
    directory: PathBuf,
    logs: PathBuf,
    janitor: Child,
}

impl Workspace {
    /// Waits for a free place, and takes it.
    pub fn new(places: Places) -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let parent = env::temp_dir().join(PREFIX);
        make_private(&parent)?;
        let (place, lock) = places.take(&parent)?;
        // Nobody else's id begins with it: the janitor and the next one here go by the beginning.
        let id = format!("{PREFIX}-{place}-{}-{}-", id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let directory = parent.join(&id);
        remove_leftovers(&parent, &format!("{PREFIX}-{place}-"))?;
        make_private(&directory)?;
        let logs = env::var_os("NODEVITALS_TEST_LOGS")
            .map_or_else(|| directory.join("logs"), |kept| Path::new(&kept).join(&id));
        make_private(&logs)?;

        let janitor = Command::new("bash")
            .args(["-c", JANITOR, "janitor"])
            .arg(&directory)
            .arg(&id)
            .stdin(Stdio::piped())
            .stdout(lock)
            .process_group(0) // outlives a Ctrl-C
            .spawn()
            .context("bash does not start")?;
        Ok(Self { id, directory, logs, janitor })
    }

    /// Unique on this machine; the name of the top cgroup of each node begins with it.
    pub fn id(&self) -> &str {
        &self.id
    }

    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// One file per program. Set `NODEVITALS_TEST_LOGS=DIRECTORY` to keep them.
    pub fn logs(&self) -> &Path {
        &self.logs
    }

    fn keep_logs(&self) {
        let kept = option_env!("CARGO_TARGET_TMPDIR")
            .map_or_else(env::temp_dir, PathBuf::from)
            .join(format!("{}-logs", self.id));
        if self.logs.starts_with(&self.directory) {
            let moved = Command::new("mv").arg(&self.logs).arg(&kept).status();
            if moved.is_ok_and(|status| status.success()) {
                eprintln!("the logs of the cluster are in {}", kept.display());
            }
        }
    }
}

impl Drop for Workspace {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.keep_logs();
        }
        drop(self.janitor.stdin.take());
        // Nothing can be done about a janitor that fails, and the next start cleans up too.
        let _ = self.janitor.wait();
    }
}

fn make_private(directory: &Path) -> Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .with_context(|| format!("cannot make {}", directory.display()))
}

/// What a janitor could not remove, because it was killed too. The lock of the place is held, so all of its is stale.
fn remove_leftovers(parent: &Path, of_the_place: &str) -> Result<()> {
    for entry in fs::read_dir(parent)?.collect::<io::Result<Vec<_>>>()? {
        if entry.file_name().to_string_lossy().starts_with(of_the_place) {
            fs::remove_dir_all(entry.path())?;
        }
    }
    Command::new("find")
        .args(["/sys/fs/cgroup/", "-depth", "-type", "d", "-path"])
        .arg(format!("*/{of_the_place}*"))
        .args(["-exec", "rmdir", "{}", "+"])
        .stderr(Stdio::null())
        .status()?;
    Ok(())
}
