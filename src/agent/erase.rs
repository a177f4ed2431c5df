//! Erases what an agent keeps in its directory on the node, and nothing else.
//!
//! Only names that agents give are touched, each below a directory that is held open, so that no link is followed and nothing
//! outside is reached; what is mounted there is left, and a tree that no agent makes ends the work.

use std::ffi::{CStr, CString};
use std::path::Path;

use anyhow::{Context, bail, ensure};
use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag};
use nix::sys::stat::{Mode, SFlag, fstat, fstatat};
use nix::unistd::{UnlinkatFlags, unlinkat};

use super::evidence::is_bundle;
use super::publish::state_file::is_state;

/// So many files and directories are taken away at most: five bundles, and one that is being written, of under 500 pieces each,
/// of which the last holds copies of the others.
const MOST: usize = 20_000;
/// So deep a bundle is at most: `kept/BUNDLE/api/PIECE` is four.
const DEEPEST: usize = 8;
/// So many names of what is foreign are told.
const TOLD: usize = 5;

/// What became of the directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Erased {
    /// There was none.
    Before,
    /// It is gone.
    Now,
}

/// Removes the agent's files and then the directory itself.
///
/// # Errors
/// What is left there, and why. What is foreign is named and stays; all that is the agent's is gone then.
pub(crate) fn erase(directory: &Path) -> anyhow::Result<Erased> {
    let place = directory.display();
    let (parent, name) = directory.parent().zip(directory.file_name()).context("is no directory of an agent's own")?;
    let name = CString::new(name.as_encoded_bytes())?;
    let parent = Dir::open(parent, FLAGS, Mode::empty()).with_context(|| parent.display().to_string())?;
    let mut here = match open(&parent, &name) {
        Err(Errno::ENOENT) => return Ok(Erased::Before),
        Err(Errno::ENOTDIR | Errno::ELOOP) => bail!("{place}: is no directory, or a link to one: look where it leads"),
        opened => opened.with_context(|| place.to_string())?,
    };
    let device = fstat(&here).with_context(|| place.to_string())?.st_dev;
    let mut work = Work { device, room: MOST, foreign: Vec::new() };
    for entry in names(&mut here)? {
        let text = entry.to_string_lossy().into_owned();
        if text == super::evidence::FOLDER {
            work.evidence(&here, &entry).with_context(|| format!("{place}/{text}"))?;
        } else if is_state(&text) {
            work.remove(&here, &entry, 0).with_context(|| format!("{place}/{text}"))?;
        } else {
            work.foreign.push(text);
        }
    }
    if !work.foreign.is_empty() {
        let (more, told) = (work.foreign.len().saturating_sub(TOLD), work.foreign.iter().take(TOLD));
        let told: Vec<_> = told.map(String::as_str).collect();
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        bail!("{place}: holds what no agent made, which is left there: {}{more}", told.join(", "));
    }
    unlinkat(&parent, &*name, UnlinkatFlags::RemoveDir).with_context(|| place.to_string())?;
    Ok(Erased::Now)
}

const FLAGS: OFlag = OFlag::O_RDONLY.union(OFlag::O_DIRECTORY).union(OFlag::O_CLOEXEC);

/// Opens a directory that is no link.
fn open(parent: &Dir, name: &CStr) -> nix::Result<Dir> {
    Dir::openat(parent, name, FLAGS | OFlag::O_NOFOLLOW, Mode::empty())
}

/// The names in a directory, but no more than are worked on.
fn names(directory: &mut Dir) -> nix::Result<Vec<CString>> {
    let own = |name: &CStr| name != c"." && name != c"..";
    let entries = directory.iter().map(|entry| entry.map(|it| it.file_name().to_owned()));
    entries.filter(|entry| entry.as_ref().is_err() || entry.as_deref().is_ok_and(own)).take(MOST + 1).collect()
}

/// What is still to be done.
struct Work {
    /// The file system of the directory.
    device: nix::libc::dev_t,
    /// So many entries may still be removed.
    room: usize,
    /// What no agent made.
    foreign: Vec<String>,
}

impl Work {
    /// Removes the bundles, and the directory that held them if it holds nothing else.
    fn evidence(&mut self, parent: &Dir, name: &CStr) -> anyhow::Result<()> {
        let mut here = self.enter(parent, name)?;
        let before = self.foreign.len();
        for entry in names(&mut here)? {
            let text = entry.to_string_lossy().into_owned();
            if is_bundle(&text) {
                self.remove(&here, &entry, DEEPEST).with_context(|| text)?;
            } else {
                self.foreign.push(format!("{}/{text}", super::evidence::FOLDER));
            }
        }
        if self.foreign.len() == before {
            unlinkat(parent, name, UnlinkatFlags::RemoveDir)?;
        }
        Ok(())
    }

    /// Removes a file, or a directory with all that it holds, `depth` levels deep.
    fn remove(&mut self, parent: &Dir, name: &CStr, depth: usize) -> anyhow::Result<()> {
        ensure!(self.room > 0, "is more than an agent keeps (over {MOST} files)");
        self.room -= 1;
        let about = fstatat(parent, name, AtFlags::AT_SYMLINK_NOFOLLOW)?;
        if about.st_mode & SFlag::S_IFMT.bits() != SFlag::S_IFDIR.bits() {
            return Ok(unlinkat(parent, name, UnlinkatFlags::NoRemoveDir)?);
        }
        if depth > 0 {
            let mut here = self.enter(parent, name)?;
            for entry in names(&mut here)? {
                self.remove(&here, &entry, depth - 1).with_context(|| entry.to_string_lossy().into_owned())?;
            }
        }
        // Where it is too deep this fails, since it is not empty.
        Ok(unlinkat(parent, name, UnlinkatFlags::RemoveDir)?)
    }

    /// Opens a directory of the same file system.
    fn enter(&self, parent: &Dir, name: &CStr) -> anyhow::Result<Dir> {
        let here = match open(parent, name) {
            Err(Errno::ENOTDIR | Errno::ELOOP) => bail!("is no directory, or a link to one"),
            opened => opened?,
        };
        ensure!(fstat(&here)?.st_dev == self.device, "another file system is mounted there");
        Ok(here)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::path::PathBuf;

    use super::*;

    const BUNDLE: &str = "evidence/20261121T100000Z-DiskFull";

    /// A directory of an agent, below one that holds a file of somebody else.
    fn kept() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let state = dir.path().join("nodevitals");
        for folder in [&format!("{BUNDLE}/kept/20261120T100000Z-DiskFull/api"), "evidence/.new", "evidence"] {
            fs::create_dir_all(state.join(folder)).expect("mkdir");
        }
        let kept = format!("{BUNDLE}/kept/20261120T100000Z-DiskFull/api/node.json");
        for file in [
            "state.json",
            "state.json.new",
            "state.json.damaged",
            "state.json.schema-7",
            "evidence/.new/facts.json.new",
            &format!("{BUNDLE}/manifest.json"),
            &kept,
        ] {
            fs::write(state.join(file), "{}").expect("writes");
        }
        fs::write(dir.path().join("state.json"), "somebody else's").expect("writes");
        (dir, state)
    }

    fn why(state: &Path) -> String {
        format!("{:#}", erase(state).expect_err("something is left"))
    }

    #[test]
    fn all_that_an_agent_makes_is_erased_and_the_directory_with_it() {
        let (dir, state) = kept();
        assert_eq!(erase(&state).expect("erases"), Erased::Now);
        assert!(!state.exists());
        assert_eq!(fs::read_to_string(dir.path().join("state.json")).expect("it stays"), "somebody else's");
        assert_eq!(erase(&state).expect("nothing to do"), Erased::Before);
    }

    #[test]
    fn what_no_agent_made_stays_and_is_named() {
        let (_dir, state) = kept();
        for file in ["notes.txt", "state.json.bak", "evidence/mine"] {
            fs::write(state.join(file), "mine").expect("writes");
        }
        let said = why(&state);
        for name in ["notes.txt", "state.json.bak", "evidence/mine"] {
            assert!(said.contains(name) && state.join(name).exists(), "{said}");
        }
        assert!(!state.join("state.json").exists() && !state.join(BUNDLE).exists());
        for number in 0..9 {
            fs::write(state.join(format!("more-{number}")), "").expect("writes");
        }
        assert!(why(&state).contains(" and 7 more"), "{}", why(&state));
    }

    #[test]
    fn no_link_is_followed() {
        let (dir, state) = kept();
        let outside = dir.path().join("outside");
        fs::create_dir_all(outside.join("20261121T100000Z-DiskFull")).expect("mkdir");
        fs::write(outside.join("state.json"), "outside").expect("writes");
        symlink(&outside, state.join(BUNDLE).join("link")).expect("a link");
        fs::remove_file(state.join("state.json")).expect("removes");
        symlink(outside.join("state.json"), state.join("state.json")).expect("a link");
        assert_eq!(erase(&state).expect("erases"), Erased::Now);
        // The bundles' directory, and the state directory itself, are links.
        fs::create_dir(&state).expect("mkdir");
        symlink(&outside, state.join("evidence")).expect("a link");
        assert!(why(&state).contains("evidence: is no directory, or a link"), "{}", why(&state));
        let link = dir.path().join("link");
        symlink(&outside, &link).expect("a link");
        assert!(why(&link).contains("link: is no directory, or a link"), "{}", why(&link));
        assert_eq!(fs::read_to_string(outside.join("state.json")).expect("it stays"), "outside");
        assert!(outside.join("20261121T100000Z-DiskFull").exists());
    }

    #[test]
    fn what_no_agent_could_have_made_ends_the_work() {
        let (_dir, state) = kept();
        let deep = state.join(BUNDLE).join("a/".repeat(DEEPEST + 1));
        fs::create_dir_all(&deep).expect("mkdir");
        assert!(why(&state).contains("not empty"), "{}", why(&state));
        assert!(deep.exists());
        let (_dir, state) = kept();
        for number in 0..MOST {
            fs::write(state.join(BUNDLE).join(number.to_string()), "").expect("writes");
        }
        assert!(why(&state).contains("more than an agent keeps"), "{}", why(&state));
    }

    #[test]
    fn what_is_mounted_there_is_another_file_system() {
        let proc = Dir::open("/proc", FLAGS, Mode::empty()).expect("/proc");
        let work = Work {
            device: fstat(Dir::open("/", FLAGS, Mode::empty()).expect("/")).expect("/").st_dev,
            room: 1,
            foreign: Vec::new(),
        };
        assert!(format!("{:#}", work.enter(&proc, c"self").expect_err("refused")).contains("link"));
        let error = work.enter(&proc, c"sys").expect_err("refused");
        assert!(format!("{error:#}").contains("another file system"), "{error:#}");
    }
}
