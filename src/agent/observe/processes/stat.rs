//! `/proc/PID/stat`: read with one call, and of its 52 fields those that are used.

use std::io::Read as _;
use std::path::Path;

use super::super::host_root::{HostRoot, open_at_once};
use crate::facts::HungProcess;

/// Longer than any line of `/proc/PID/stat`: 52 numbers and a name. Where there is room for all of it one read hands it out whole.
pub(super) const LINE: usize = 2048;

/// What is used of `/proc/PID/stat`.
#[derive(Debug)]
pub(super) struct Stat {
    pub(super) state: char,
    pub(super) parent: i32,
    threads: u64,
    /// In clock ticks after boot.
    pub(super) starttime: u64,
    /// Resident pages.
    pages: u64,
}

impl Stat {
    /// Whether it has ended, and only waits for its parent to ask.
    pub(super) fn has_ended(&self) -> bool {
        matches!(self.state, 'Z' | 'X')
    }
}

/// Threads and resident bytes of a process.
pub(in super::super) fn usage(process: &Path) -> Option<(u64, u64)> {
    let stat = read(process)?;
    Some((stat.threads, stat.pages * procfs::page_size()))
}

/// The state letter of a process or thread, by its directory `/proc/PID` or below `/proc/PID/task`.
pub(in super::super) fn state(task: &Path) -> Option<char> {
    read(task).map(|stat| stat.state)
}

/// The threads of the process that does not answer. So many are looked at at most: each costs a file.
pub(in super::super) fn threads(host: &HostRoot, pid: i32) -> Option<HungProcess> {
    const MOST: usize = 2048;
    let tasks = std::fs::read_dir(host.path(&format!("/proc/{pid}/task"))).ok()?;
    let mut process = HungProcess { pid, threads: 0, stopped: 0, stuck: 0 };
    for task in tasks.flatten().take(MOST) {
        let Some(state) = state(&task.path()) else { continue };
        process.threads += 1;
        process.stopped += u32::from(matches!(state, 'T' | 't'));
        process.stuck += u32::from(state == 'D');
    }
    Some(process)
}

/// What is used of the line of a process or thread, by its directory.
pub(super) fn read(process: &Path) -> Option<Stat> {
    let mut buffer = [0; LINE];
    let length = open_at_once(&process.join("stat")).and_then(|mut file| file.read(&mut buffer)).ok()?;
    parse(&buffer[..length])
}

/// The name in parentheses can hold anything, so the fields are counted from the last one of them (proc(5): the state is
/// the 3rd, the start time the 22nd).
pub(super) fn parse(line: &[u8]) -> Option<Stat> {
    let name_ends = line.iter().rposition(|byte| *byte == b')')?;
    let mut fields = std::str::from_utf8(&line[name_ends + 1..]).ok()?.split_ascii_whitespace();
    Some(Stat {
        state: fields.next()?.chars().next()?,
        parent: fields.next()?.parse().ok()?,
        threads: fields.nth(15)?.parse().ok()?,
        starttime: fields.nth(1)?.parse().ok()?,
        pages: fields.nth(1).and_then(|field| field.parse().ok()).unwrap_or(0),
    })
}

/// The name in parentheses: at most 15 bytes of a program's name.
pub(super) fn short_name(line: &[u8]) -> &str {
    let begins = line.iter().position(|byte| *byte == b'(').map_or(0, |at| at + 1);
    let ends = line.iter().rposition(|byte| *byte == b')').unwrap_or(begins).max(begins);
    name(&line[begins..ends])
}

/// The same name as `/proc/PID/comm` has it.
pub(super) fn name(line: &[u8]) -> &str {
    std::str::from_utf8(line.strip_suffix(b"\n").unwrap_or(line)).unwrap_or_default()
}
