//! Where a bundle is written: a directory, to which a second run adds what the first could not take, or a tar archive on a
//! stream, where no disk takes it.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use jiff::Timestamp;

use super::{FACTS, MANIFEST, Manifest, SUMMARY, tar};

/// A bundle that is being written.
#[derive(Debug)]
pub(crate) enum Bundle {
    /// A directory.
    Folder(PathBuf),
    /// An archive, and what is in it.
    Stream(File),
}

impl Bundle {
    /// A directory, and what an earlier run left in it. It has to be of the same node and, where it is known, the same boot.
    pub(crate) fn folder(path: &Path, new: Manifest) -> anyhow::Result<(Bundle, Manifest)> {
        let manifest = path.join(MANIFEST);
        let old = match fs::read(&manifest) {
            Ok(bytes) => {
                let old: Manifest = serde_json::from_slice(&bytes)
                    .with_context(|| format!("{}: is damaged; give another directory", manifest.display()))?;
                // Who asks from afar does not know the boot before the node has been looked at.
                if old.node != new.node || !new.boot_id.is_empty() && old.boot_id != new.boot_id {
                    bail!(
                        "{}: holds the bundle of {} and an other boot or node; give another directory",
                        path.display(),
                        old.node
                    );
                }
                old
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                fs::create_dir_all(path).with_context(|| format!("{}: cannot be made", path.display()))?;
                private(path);
                new
            }
            Err(error) => return Err(error).with_context(|| format!("{}: cannot be read", manifest.display())),
        };
        Ok((Bundle::Folder(path.to_owned()), old))
    }

    /// Writes one file, whole or not at all.
    pub(crate) fn put(&mut self, name: &str, content: &[u8]) -> io::Result<()> {
        match self {
            Bundle::Folder(path) => put_whole(&path.join(name), content),
            Bundle::Stream(out) => out.write_all(&tar::entry(name, content, Timestamp::now().as_second())),
        }
    }

    /// Writes how far it has come, where that can be written twice.
    pub(crate) fn mark(&mut self, manifest: &Manifest) -> io::Result<()> {
        match self {
            Bundle::Folder(path) => put_whole(&path.join(MANIFEST), &serde_json::to_vec_pretty(manifest)?),
            Bundle::Stream(_) => Ok(()),
        }
    }

    /// Writes manifest and summary: it is complete.
    pub(crate) fn finish(&mut self, manifest: &Manifest, summary: &str) -> io::Result<()> {
        self.put(SUMMARY, summary.as_bytes())?;
        self.put(MANIFEST, &serde_json::to_vec_pretty(manifest)?)?;
        match self {
            Bundle::Folder(_) => Ok(()),
            Bundle::Stream(out) => out.write_all(&tar::END).and_then(|()| out.flush()),
        }
    }

    /// What the directory holds of the facts.
    pub(crate) fn facts(&self) -> Option<Vec<u8>> {
        match self {
            Bundle::Folder(path) => fs::read(path.join(FACTS)).ok(),
            Bundle::Stream(_) => None,
        }
    }
}

/// Writes a file beside its place and moves it there, for its owner alone.
fn put_whole(path: &Path, content: &[u8]) -> io::Result<()> {
    use std::os::unix::fs::OpenOptionsExt as _;
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    let write = || {
        // What an interrupted run left is somebody else's no more.
        fs::remove_file(&new)
            .or_else(|error| if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) })?;
        let mut file = File::options().write(true).create_new(true).mode(0o600).open(&new)?;
        file.write_all(content)?;
        fs::rename(&new, path)
    };
    let written = write();
    if written.is_err() {
        fs::remove_file(&new).ok();
    }
    written
}

/// For its owner alone: logs and configuration are nobody else's.
fn private(path: &Path) {
    use std::os::unix::fs::PermissionsExt as _;
    fs::set_permissions(path, fs::Permissions::from_mode(0o700)).ok();
}
