//! The runtime's store on disk: whether containerd's database and images are whole, or CRI-O's lists of layers, images and
//! containers. Only read, never locked, never opened as a
//! database: containerd may hold it. Its tree is walked once, at the start: what a crash left damaged is so by then.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::time::SystemTime;

use super::host_root::HostRoot;
use super::node_files::is_damage;
use crate::facts::{FileFault, LookError, Reason};

mod pages;

const DATABASE: &str = "io.containerd.metadata.v1.bolt/meta.db";
const BLOBS: &str = "io.containerd.content.v1.content/blobs/sha256";
/// The digest of nothing: the one blob that may be empty.
const EMPTY: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
/// So many blobs are looked at: those of more than a thousand images.
const MOST: usize = 20_000;
/// CRI-O's lists (`layers.go`, `images.go` and `containers.go` of containers/storage), with the driver that all of its nodes use.
const LISTS: [&str; 3] =
    ["overlay-layers/layers.json", "overlay-images/images.json", "overlay-containers/containers.json"];
/// So many bytes of each end of a list are read.
const END: usize = 64;
/// So often a walk is tried while containerd writes.
const WALKS: usize = 3;

/// Looks at the store, and remembers what has not changed.
#[derive(Debug)]
pub(super) struct StoreSource {
    host: HostRoot,
    /// When the directory of blobs last changed, and how many of them were empty then, with one of their names.
    blobs: Option<(SystemTime, usize, String)>,
    /// Whether the tree of the database was found whole.
    walked: bool,
}

impl StoreSource {
    /// Nothing was looked at yet.
    pub(super) fn new(host: HostRoot) -> Self {
        StoreSource { host, blobs: None, walked: false }
    }

    /// Looks at the store at `root`; an error with the reason `Missing` says that there is none.
    pub(super) fn look(&mut self, root: &str) -> Result<Vec<FileFault>, LookError> {
        if self.host.path(&format!("{root}/{}", LISTS[0])).exists() {
            return self.lists(root);
        }
        let mut faults = Vec::new();
        let database = format!("{root}/{DATABASE}");
        let file = self.host.open(&database, u64::MAX)?;
        match self.database(&file).map_err(|error| LookError::io(&*database, &error)) {
            Ok(None) => {}
            Ok(Some(what)) => faults.push(FileFault { path: database, what }),
            Err(error) if is_damage(&error.detail) => {
                faults.push(FileFault { path: database, what: format!("cannot be read: {}", error.detail) });
            }
            Err(error) => return Err(error),
        }
        let blobs = format!("{root}/{BLOBS}");
        match self.empty_blobs(&self.host.path(&blobs)) {
            Ok((0, _)) => {}
            Ok((count, name)) => {
                let what = format!("{count} of its blobs are empty, {} for one", name.get(..12).unwrap_or(&name));
                faults.push(FileFault { path: blobs, what });
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(LookError::io(blobs, &error)),
        }
        Ok(faults)
    }

    /// What is wrong with CRI-O's lists. Each is replaced as a whole, so that half of one is no list that is being written.
    fn lists(&self, root: &str) -> Result<Vec<FileFault>, LookError> {
        let mut faults = Vec::new();
        for list in LISTS {
            let path = format!("{root}/{list}");
            let ends = match self.host.open(&path, u64::MAX) {
                Ok(file) => ends(&file),
                // Without containers there may be no list of them.
                Err(error) if error.reason == Reason::Missing => continue,
                Err(error) => return Err(error),
            };
            match ends.map_err(|error| LookError::io(&*path, &error)) {
                Ok(ends) => faults.extend(list_fault(&ends).map(|what| FileFault { path, what: what.to_owned() })),
                Err(error) if is_damage(&error.detail) => {
                    faults.push(FileFault { path, what: format!("cannot be read: {}", error.detail) });
                }
                Err(error) => return Err(error),
            }
        }
        Ok(faults)
    }

    /// What is wrong with the database.
    fn database(&mut self, file: &File) -> io::Result<Option<String>> {
        for _ in 0..WALKS {
            let newest = match newest(file)? {
                Ok(newest) => newest,
                Err(what) => return Ok(Some(what)),
            };
            if self.walked {
                break;
            }
            let fault = walk(file, &newest)?;
            // What was reached may have been overwritten since by later transactions: then nothing was learnt.
            if self::newest(file)?.is_ok_and(|now| now.transaction == newest.transaction) {
                self.walked = fault.is_none();
                return Ok(fault.map(|what| format!("is damaged: {what}")));
            }
        }
        Ok(None)
    }

    /// Blobs of length zero: committed, and lost by a file system that was not written back. Unfinished ones are elsewhere.
    fn empty_blobs(&mut self, directory: &Path) -> std::io::Result<(usize, String)> {
        let modified = std::fs::metadata(directory)?.modified()?;
        if let Some((at, count, name)) = &self.blobs
            && *at == modified
            && *count == 0
        {
            return Ok((*count, name.clone()));
        }
        let entries = std::fs::read_dir(directory)?.flatten().take(MOST);
        let mut empty = entries.filter(|entry| entry.metadata().is_ok_and(|about| about.is_file() && about.len() == 0));
        let mut empty =
            empty.by_ref().filter_map(|entry| entry.file_name().into_string().ok()).filter(|name| name != EMPTY);
        let first = empty.next();
        let count = empty.count() + usize::from(first.is_some());
        let name = first.unwrap_or_default();
        self.blobs = Some((modified, count, name.clone()));
        Ok((count, name))
    }
}

/// The first and the last bytes of a file.
fn ends(file: &File) -> io::Result<Vec<u8>> {
    let (mut ends, length) = (vec![0; 2 * END], file.metadata()?.len());
    let first = read_up_to(file, &mut ends[..END])?;
    let mut last = vec![0; END];
    let count = file.read_at(&mut last, length.saturating_sub(END as u64))?;
    ends.truncate(first);
    ends.extend(&last[..count]);
    Ok(ends)
}

/// What is wrong with a JSON list, by its ends; `null` is an empty one.
fn list_fault(ends: &[u8]) -> Option<&'static str> {
    let text = ends.trim_ascii();
    match text {
        [] => Some("is empty: what CRI-O had is lost"),
        _ if text.contains(&0) => Some("holds zeros where its text was"),
        [b'[', .., b']'] | [b'n', .., b'l'] => None,
        _ => Some("is cut off or overwritten: it is no JSON list"),
    }
}

/// Two pages of the largest usual size, each with a header of its own.
const HEAD: usize = 2 * 16384;
/// A page begins with 16 bytes of its own; what they hold is not needed.
const PAGE_HEADER: usize = 16;
/// `magic` of bbolt's `meta` (`internal/common/types.go`).
const MAGIC: u32 = 0xED0C_DAED;

/// The newest of the two first pages of a bbolt database, or what is wrong with them. Either is enough: bbolt writes them in
/// turn.
fn newest(file: &File) -> io::Result<Result<Meta, String>> {
    let (mut head, length) = (vec![0; HEAD], file.metadata()?.len());
    let read = read_up_to(file, &mut head)?;
    head.truncate(read);
    Ok(newest_of(&head, length))
}

fn newest_of(head: &[u8], length: u64) -> Result<Meta, String> {
    if length == 0 {
        return Err("is empty: everything that containerd knew is lost".to_owned());
    }
    let first = meta(head, 0);
    let sizes = [4096, 8192, 16384];
    let second = sizes.iter().find_map(|size| meta(head, *size).filter(|meta| meta.page_size as usize == *size));
    let Some(newest) = first.into_iter().chain(second).max_by_key(|meta| meta.transaction) else {
        return Err("is no database any more: neither of its two first pages is whole".to_owned());
    };
    let needed = newest.pages.saturating_mul(u64::from(newest.page_size));
    if needed > length {
        return Err(format!("is cut off: it has {length} bytes and should have {needed}"));
    }
    Ok(newest)
}

/// The beginning of a file, as far as there is room.
fn read_up_to(file: &File, room: &mut [u8]) -> io::Result<usize> {
    let mut done = 0;
    while done < room.len() {
        match file.read_at(&mut room[done..], done as u64)? {
            0 => break,
            read => done += read,
        }
    }
    Ok(done)
}

/// What is wrong with the tree of this transaction.
fn walk(file: &File, newest: &Meta) -> io::Result<Option<String>> {
    let page = u64::from(newest.page_size);
    pages::fault(newest.root, newest.pages, newest.page_size, |id, length| {
        let mut bytes = vec![0; length];
        file.read_exact_at(&mut bytes, id * page).map(|()| bytes)
    })
}

struct Meta {
    page_size: u32,
    /// One more than the highest page in use.
    pages: u64,
    transaction: u64,
    /// The root page of its tree.
    root: u64,
}

/// Reads `meta`: magic, version, pageSize, flags (4 bytes each), root (16), freelist, pgid, txid, checksum (8 each).
fn meta(head: &[u8], at: usize) -> Option<Meta> {
    let meta = head.get(at + PAGE_HEADER..at + PAGE_HEADER + 64)?;
    let short = |at: usize| Some(u32::from_ne_bytes(meta.get(at..at + 4)?.try_into().ok()?));
    let long = |at: usize| Some(u64::from_ne_bytes(meta.get(at..at + 8)?.try_into().ok()?));
    let whole = short(0)? == MAGIC && long(56)? == fnv(&meta[..56]);
    whole.then_some(Meta { page_size: short(8)?, pages: long(40)?, transaction: long(48)?, root: long(16)? })
}

/// FNV-1a, 64 bits.
fn fnv(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |sum, byte| (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

/// The fuzz target's door.
#[cfg(any(test, fuzzing))]
pub(super) fn fuzz(bytes: &[u8]) {
    let _ = list_fault(bytes);
    if let Ok(newest) = newest_of(bytes, bytes.len() as u64) {
        let at = |id: u64| usize::try_from(id.saturating_mul(u64::from(newest.page_size))).unwrap_or(usize::MAX);
        let read =
            |id: u64, length: usize| bytes.get(at(id)..at(id).saturating_add(length)).map(<[u8]>::to_vec).ok_or(());
        let _ = pages::fault(newest.root, newest.pages, newest.page_size, read);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(pages: u64, transaction: u64) -> Vec<u8> {
        let mut meta: Vec<u8> = [MAGIC, 2, 4096, 0].iter().flat_map(|word| word.to_ne_bytes()).collect();
        meta.extend([3, 0, 2, pages, transaction].iter().flat_map(|word: &u64| word.to_ne_bytes()));
        let sum = fnv(&meta);
        meta.extend(sum.to_ne_bytes());
        let mut page = vec![0; PAGE_HEADER];
        page.extend(meta);
        page.resize(4096, 0);
        page
    }

    fn database(pages: u64) -> Vec<u8> {
        let mut database = [page(pages, 7), page(pages, 8), vec![1; 4096 * 6]].concat();
        // The root of its tree is an empty leaf.
        database[3 * 4096..3 * 4096 + 16].copy_from_slice(&[3, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0]);
        database
    }

    fn fault(database: &[u8]) -> Option<String> {
        newest_of(&database[..database.len().min(HEAD)], database.len() as u64).err()
    }

    #[test]
    fn a_database_is_whole_when_one_of_its_two_pages_is() {
        assert_eq!(fault(&database(8)), None);
        let torn = |at: usize| {
            let mut torn = database(8);
            torn[at + 40] ^= 1;
            torn
        };
        assert_eq!(fault(&torn(0)), None, "one is being written");
        assert_eq!(fault(&torn(4096)), None);
        let mut both = torn(0);
        both[4096 + 40] ^= 1;
        assert!(fault(&both).is_some_and(|what| what.starts_with("is no database")));
        assert!(fault(&vec![0; 40_000]).is_some_and(|what| what.starts_with("is no database")));
        assert!(fault(&[]).is_some_and(|what| what.starts_with("is empty")));
        assert!(fault(b"x").is_some());
        assert_eq!(fault(&database(9)).as_deref(), Some("is cut off: it has 32768 bytes and should have 36864"));
    }

    #[test]
    fn the_tree_is_walked_until_it_was_found_whole() {
        let root = tempfile::tempdir().expect("a temporary directory");
        let at = |path: &str| root.path().join("store").join(path);
        let mut source = StoreSource::new(HostRoot::new(root.path()));
        std::fs::create_dir_all(at("io.containerd.metadata.v1.bolt")).expect("mkdir");
        let mut lost = database(8);
        lost[3 * 4096] = 0;
        std::fs::write(at(DATABASE), &lost).expect("write");
        let faults = source.look("/store").expect("readable");
        assert_eq!(faults[0].what, "is damaged: its page 3 of 8 is lost");
        std::fs::write(at(DATABASE), database(8)).expect("write");
        assert_eq!(source.look("/store"), Ok(vec![]), "it clears");
        std::fs::write(at(DATABASE), &lost).expect("write");
        assert_eq!(source.look("/store"), Ok(vec![]), "a crash damages nothing later");
    }

    #[test]
    fn empty_blobs_are_named_and_looked_for_again_when_the_directory_changes() {
        let root = tempfile::tempdir().expect("a temporary directory");
        let at = |path: &str| root.path().join("store").join(path);
        let mut source = StoreSource::new(HostRoot::new(root.path()));
        assert_eq!(source.look("/store").expect_err("no store").reason, Reason::Missing);
        std::fs::create_dir_all(at("io.containerd.metadata.v1.bolt")).expect("mkdir");
        std::fs::write(at(DATABASE), database(8)).expect("write");
        assert_eq!(source.look("/store"), Ok(vec![]), "no image was pulled yet");
        std::fs::create_dir_all(at(BLOBS)).expect("mkdir");
        std::fs::write(at(BLOBS).join(EMPTY), "").expect("write");
        std::fs::write(at(BLOBS).join("aa"), "content").expect("write");
        assert_eq!(source.look("/store"), Ok(vec![]));
        std::fs::write(at(BLOBS).join("bbbbbbbbbbbbbbbb"), "").expect("write");
        let faults = source.look("/store").expect("readable");
        assert_eq!(faults[0].what, "1 of its blobs are empty, bbbbbbbbbbbb for one");
        std::fs::write(at(BLOBS).join("bbbbbbbbbbbbbbbb"), "pulled again").expect("write");
        assert_eq!(source.look("/store"), Ok(vec![]), "it clears");
    }

    #[test]
    fn crios_lists_are_whole_or_damaged() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let mut source = StoreSource::new(HostRoot::new(dir.path()));
        let write = |list: &str, text: &[u8]| {
            let path = dir.path().join("store").join(list);
            std::fs::create_dir_all(path.parent().expect("a directory")).expect("mkdir");
            std::fs::write(path, text).expect("write");
        };
        write(LISTS[0], format!("[{}]\n", vec!["{\"id\":\"1\"}"; 500].join(",")).as_bytes());
        assert_eq!(source.look("/store"), Ok(vec![]), "nothing ever ran");
        write(LISTS[1], b"null");
        write(LISTS[2], b"[]");
        assert_eq!(source.look("/store"), Ok(vec![]));
        for (text, what) in [
            (&b""[..], "is empty"),
            (b"[{\"id\":\"1\"},{\"id", "is cut off"),
            (&[0; 4096], "holds zeros"),
            (b"[{\"id\":\"1\"\0\0\0", "holds zeros"),
        ] {
            write(LISTS[1], text);
            let faults = source.look("/store").expect("readable");
            assert!(faults.len() == 1 && faults[0].path.ends_with("images.json"), "{faults:?}");
            assert!(faults[0].what.starts_with(what), "{faults:?}");
        }
        write(LISTS[1], b"[]");
        assert_eq!(source.look("/store"), Ok(vec![]), "over");
        assert_eq!(source.look("/none").expect_err("none").reason, Reason::Missing);
    }
}
