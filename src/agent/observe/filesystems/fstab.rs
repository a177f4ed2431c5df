//! `/etc/fstab`: which mounts are meant to be read-only.

use super::super::host_root::HostRoot;
use super::mounts::unescape;

/// A long one has some hundred lines; in bytes.
const LIMIT: u64 = 256 << 10;

/// One line.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) point: String,
    pub(super) kind: String,
    pub(super) read_only: bool,
}

/// Reads it. Many nodes have none, or an empty one: then it says nothing.
pub(super) fn read(host: &HostRoot) -> Vec<Entry> {
    host.read_text("/etc/fstab", LIMIT).map(|text| text.lines().filter_map(parse).collect()).unwrap_or_default()
}

fn parse(line: &str) -> Option<Entry> {
    let mut fields = line.split('#').next()?.split_whitespace().skip(1);
    let (point, kind) = (unescape(fields.next()?), fields.next()?.to_owned());
    let read_only = fields.next().unwrap_or("defaults").split(',').any(|option| option == "ro");
    Some(Entry { point, kind, read_only })
}

/// The fuzz target's door.
#[cfg(any(test, fuzzing))]
pub(super) fn fuzz(text: &str) {
    text.lines().filter_map(parse).for_each(drop);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_every_sort() {
        let entry =
            |point: &str, kind: &str, read_only| Some(Entry { point: point.into(), kind: kind.into(), read_only });
        assert_eq!(parse("UUID=1 / ext4 rw,errors=remount-ro 0 1"), entry("/", "ext4", false));
        assert_eq!(parse("/dev/sdb\t/a\\040b  xfs  noatime,ro 0 0"), entry("/a b", "xfs", true));
        assert_eq!(parse("/dev/sdc /c auto"), entry("/c", "auto", false));
        assert_eq!(parse("# UUID=1 / ext4 ro"), None);
        assert_eq!(parse(""), None);
        assert_eq!(parse("half"), None);
    }
}
