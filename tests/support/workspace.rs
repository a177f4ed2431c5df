//! A directory and a cgroup name for one control plane, and the lock that keeps the machine to one at a time.

use std::{
    env,
    fs::{self, File},
    io,
    os::unix::{fs::DirBuilderExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio, id},
    sync::atomic::{AtomicU32, Ordering},
};

use anyhow::{Context, Result};

/// Under the machine's temporary directory, and the prefix of every cgroup.
const PREFIX: &str = "nodevitals-test";

/// Removes the directory and the cgroups as soon as the test process is gone, killed or not. The lock is its standard
/// output, so the next control plane starts only when this is done.
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
    /// Waits for the machine to be free, and takes it.
    pub fn new() -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let parent = env::temp_dir().join(PREFIX);
        let id = format!("{PREFIX}-{}-{}", id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let directory = parent.join(&id);

        make_private(&parent)?;
        let lock = take_lock(&parent.join("lock"))?;
        remove_leftovers(&parent)?;
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

fn take_lock(path: &Path) -> Result<File> {
    let lock = File::create(path).with_context(|| path.display().to_string())?;
    if lock.try_lock().is_err() {
        eprintln!("waiting for another test's cluster to end");
        lock.lock()?;
    }
    Ok(lock)
}

/// What a janitor could not remove, because it was killed too. The lock is held, so all of it is stale.
fn remove_leftovers(parent: &Path) -> Result<()> {
    for entry in fs::read_dir(parent)?.collect::<io::Result<Vec<_>>>()? {
        if entry.file_type()?.is_dir() {
            fs::remove_dir_all(entry.path())?;
        }
    }
    Command::new("find")
        .args(["/sys/fs/cgroup/", "-depth", "-type", "d", "-path"])
        .arg(format!("*/{PREFIX}-*"))
        .args(["-exec", "rmdir", "{}", "+"])
        .stderr(Stdio::null())
        .status()?;
    Ok(())
}
