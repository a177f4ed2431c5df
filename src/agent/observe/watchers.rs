//! Who holds inotify instances and watches: the kernel counts them for each user and tells nobody, but an instance is a
//! descriptor, and the watches of one are lines of its `fdinfo`. Looked at only while they run out.

use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::MetadataExt as _;
use std::time::{Duration, Instant};

use super::host_root::HostRoot;
use crate::facts::{InotifyUsers, LookError, Reason};

/// After so many processes, or this time, a walk over them stops where it is.
const PROCESSES: usize = 10_000;
const LONGEST: Duration = Duration::from_millis(500);
/// So many are told.
const TOLD: usize = 3;
/// What a descriptor of an instance leads to.
const INSTANCE: &str = "anon_inode:inotify";

/// What a process holds.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Held {
    instances: u64,
    watches: u64,
}

/// The processes of this program's user, who is that of the kubelet, that hold most.
pub(super) fn look(host: &HostRoot) -> Result<InotifyUsers, LookError> {
    let (until, user) = (Instant::now() + LONGEST, nix::unistd::geteuid().as_raw());
    let entries = std::fs::read_dir(host.path("/proc")).map_err(|error| LookError::io("/proc", &error))?;
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let (mut instances, mut watches, mut hidden) = (Vec::new(), Vec::new(), 0);
    for pid in pids.take(PROCESSES) {
        if Instant::now() > until {
            break;
        }
        let of_user = std::fs::metadata(host.path(&format!("/proc/{pid}"))).is_ok_and(|about| about.uid() == user);
        match held(host, pid, until) {
            Ok(held) if of_user && held.instances > 0 => {
                let name = host.read_text(&format!("/proc/{pid}/comm"), 64).unwrap_or_default();
                let name = format!("{} (process {pid})", name.trim());
                instances.push((held.instances, name.clone()));
                watches.push((held.watches, name));
            }
            Err(error) if of_user && error.reason == Reason::Denied => hidden += 1,
            _ => {}
        }
    }
    Ok(InotifyUsers { instances: most(instances), watches: most(watches), hidden })
}

/// Those that hold most.
fn most(mut all: Vec<(u64, String)>) -> Vec<(String, u64)> {
    all.sort_unstable_by(|one, other| other.cmp(one));
    all.into_iter().filter(|(count, _)| *count > 0).take(TOLD).map(|(count, name)| (name, count)).collect()
}

/// What a process holds, as far as time allows to count.
fn held(host: &HostRoot, pid: u32, until: Instant) -> Result<Held, LookError> {
    let path = format!("/proc/{pid}/fd");
    let place = host.path(&format!("/proc/{pid}")).join("fd");
    let entries = std::fs::read_dir(place).map_err(|error| LookError::io(&path, &error))?;
    let mut held = Held::default();
    for entry in entries.flatten() {
        if std::fs::read_link(entry.path()).is_ok_and(|target| target.as_os_str() == INSTANCE) {
            let name = entry.file_name();
            held.instances += 1;
            held.watches += watches(host, &format!("/proc/{pid}/fdinfo/{}", name.to_string_lossy()), until);
        }
        if Instant::now() > until {
            break;
        }
    }
    Ok(held)
}

/// The watches of an instance: lines that begin with `inotify wd:` (`show_mark_fhandle` of `fs/notify/fdinfo.c`).
fn watches(host: &HostRoot, path: &str, until: Instant) -> u64 {
    let Ok(file) = host.open(path, u64::MAX) else { return 0 };
    let lines = BufReader::new(file).lines().map_while(Result::ok);
    lines.take_while(|_| Instant::now() < until).filter(|line| line.starts_with("inotify wd:")).count() as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
    use std::os::unix::fs::symlink;

    #[test]
    fn those_of_this_user_who_hold_most() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        for (pid, instances, watches) in [(7, 2, 1), (8, 1, 40), (9, 0, 0), (10, 90, 0), (11, 3, 2), (12, 4, 9)] {
            let at = dir.path().join(format!("proc/{pid}"));
            std::fs::create_dir_all(at.join("fd")).expect("mkdir");
            std::fs::create_dir(at.join("fdinfo")).expect("mkdir");
            std::fs::write(at.join("comm"), format!("p{pid}\n")).expect("write");
            symlink("/dev/null", at.join("fd/0")).expect("link");
            for number in 1..=instances {
                symlink(INSTANCE, at.join(format!("fd/{number}"))).expect("link");
                let lines = "inotify wd:1 ino:2 sdev:3 mask:4\n".repeat(watches);
                std::fs::write(at.join(format!("fdinfo/{number}")), format!("pos:\t0\nflags:\t0\n{lines}"))
                    .expect("write");
            }
        }
        let told = look(&HostRoot::new(dir.path())).expect("readable");
        let named = |all: &[(u32, u64)]| -> Vec<(String, u64)> {
            all.iter().map(|(pid, count)| (format!("p{pid} (process {pid})"), *count)).collect()
        };
        assert_eq!(told.instances, named(&[(10, 90), (12, 4), (11, 3)]));
        assert_eq!(told.watches, named(&[(8, 40), (12, 36), (11, 6)]));
        assert_eq!(told.hidden, 0);
    }

    #[test]
    fn counts_those_of_a_real_process() {
        let (host, until) = (HostRoot::new("/"), Instant::now() + Duration::from_secs(60));
        let before = held(&host, std::process::id(), until).expect("its own");
        let instances: Vec<Inotify> =
            (0..3).map(|_| Inotify::init(InitFlags::IN_CLOEXEC).expect("there is room")).collect();
        for path in ["/", "/proc"] {
            instances[0].add_watch(path, AddWatchFlags::IN_DELETE_SELF).expect("there is room");
        }
        let after = held(&host, std::process::id(), until).expect("its own");
        // Other tests of this process have some too, and let go of them.
        assert!(after.instances >= 3 && after.watches >= 2, "{before:?} became {after:?}");
        assert!(look(&host).expect("readable").instances.iter().any(|(_, count)| *count >= 3));
    }
}
