//! Bundles in one file: plain ustar (POSIX.1-1988), which every `tar` reads and writes.

/// Everything comes in blocks of so many bytes.
const BLOCK: usize = 512;
/// Longest name that is written.
const LONGEST_NAME: usize = 100;

/// One file, with its header and padding.
pub(crate) fn entry(name: &str, content: &[u8], modified: i64) -> Vec<u8> {
    let mut header = [0; BLOCK];
    let mut put = |at: usize, text: &str| header[at..at + text.len()].copy_from_slice(text.as_bytes());
    let mut cut = name.len().min(LONGEST_NAME);
    while !name.is_char_boundary(cut) {
        cut -= 1;
    }
    put(0, &name[..cut]);
    put(100, "0000600");
    put(108, "0000000");
    put(116, "0000000");
    put(124, &format!("{:011o}", content.len()));
    put(136, &format!("{:011o}", modified.max(0)));
    // While the sum is taken its own place holds blanks.
    put(148, "        ");
    put(156, "0");
    put(257, "ustar\x0000");
    put(265, "root");
    put(297, "root");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    let mut all = header.to_vec();
    all.extend_from_slice(content);
    all.resize(all.len().next_multiple_of(BLOCK), 0);
    all
}

/// What stands behind the last file.
pub(crate) const END: [u8; 2 * BLOCK] = [0; 2 * BLOCK];

/// A file of an archive: its path and its content.
pub(crate) type Entry<'a> = (String, &'a [u8]);

/// The regular files of an archive, with their paths; what else is in it is passed over.
///
/// # Errors
/// What is wrong and at which byte.
pub(crate) fn files(archive: &[u8]) -> Result<Vec<Entry<'_>>, String> {
    let mut files = Vec::new();
    read(archive, &mut files).map(|()| files)
}

/// Those that are whole, and what is wrong behind them.
pub(crate) fn whole_files(archive: &[u8]) -> (Vec<Entry<'_>>, Option<String>) {
    let mut files = Vec::new();
    let read = read(archive, &mut files);
    (files, read.err())
}

fn read<'a>(archive: &'a [u8], files: &mut Vec<Entry<'a>>) -> Result<(), String> {
    let mut at = 0;
    loop {
        let cut = |what: &str| format!("is cut off at byte {}: {what}", archive.len());
        let header = archive.get(at..at + BLOCK).ok_or_else(|| cut("no end of the archive"))?;
        if header.iter().all(|byte| *byte == 0) {
            return Ok(());
        }
        let sum: u32 = header
            .iter()
            .enumerate()
            .map(|(at, it)| u32::from(if (148..156).contains(&at) { b' ' } else { *it }))
            .sum();
        if octal(&header[148..156]) != Some(u64::from(sum)) {
            return Err(format!("is no tar archive: the header at byte {at} does not add up"));
        }
        let (name, folder) = (text(&header[..100]), text(&header[345..500]));
        let name = if folder.is_empty() || &header[257..262] != b"ustar" { name } else { format!("{folder}/{name}") };
        let size = octal(&header[124..136]).and_then(|size| usize::try_from(size).ok());
        let size = size.ok_or_else(|| format!("{name}: its size in the header at byte {at} is no number"))?;
        let end = (at + BLOCK).checked_add(size).filter(|end| *end <= archive.len());
        let end = end.ok_or_else(|| cut(&format!("{name} should be {size} bytes long")))?;
        if matches!(header[156], b'0' | 0) {
            files.push((name, &archive[at + BLOCK..end]));
        }
        at = end.next_multiple_of(BLOCK);
    }
}

fn text(field: &[u8]) -> String {
    String::from_utf8_lossy(field.split(|byte| *byte == 0).next().unwrap_or_default()).into_owned()
}

fn octal(field: &[u8]) -> Option<u64> {
    let digits = text(field);
    u64::from_str_radix(digits.trim(), 8).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn archive() -> Vec<u8> {
        let mut all = entry("n1/facts.json", b"{}", 1_700_000_000);
        all.extend(entry("n1/empty", b"", 0));
        all.extend(entry("n1/long", &[7; 1500], 0));
        all.extend(END);
        all
    }

    #[test]
    fn tar_itself_reads_what_is_written_and_what_it_writes_is_read() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let run = |arguments: &[&str]| {
            let done = std::process::Command::new("tar").args(arguments).current_dir(&dir).output().expect("tar");
            assert!(done.status.success() && done.stderr.is_empty(), "{done:?}");
        };
        std::fs::write(dir.path().join("a.tar"), archive()).expect("writes");
        run(&["xf", "a.tar"]);
        assert_eq!(std::fs::read(dir.path().join("n1/long")).expect("it is there"), [7; 1500]);
        run(&["cf", "b.tar", "n1"]);
        let bytes = std::fs::read(dir.path().join("b.tar")).expect("it is there");
        let mut names: Vec<_> =
            files(&bytes).expect("reads").into_iter().map(|(name, file)| (name, file.len())).collect();
        names.sort_unstable();
        let of = |name: &str, length| (name.to_owned(), length);
        assert_eq!(names, [of("n1/empty", 0), of("n1/facts.json", 2), of("n1/long", 1500)]);
    }

    #[test]
    fn what_is_cut_or_foreign_says_where() {
        let all = archive();
        let why = |bytes: &[u8]| files(bytes).expect_err("it is damaged");
        assert_eq!(why(&all[..3000]), "is cut off at byte 3000: n1/long should be 1500 bytes long");
        assert_eq!(why(&[]), "is cut off at byte 0: no end of the archive");
        assert_eq!(why(&[b'x'; 600]), "is no tar archive: the header at byte 0 does not add up");
        let (whole, why) = whole_files(&all[..3000]);
        let names: Vec<&str> = whole.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["n1/facts.json", "n1/empty"]);
        assert!(why.is_some_and(|why| why.contains("n1/long")));
        let mut odd = all;
        odd[700] ^= 1;
        assert_eq!(files(&odd).map(|files| files.len()), Ok(3), "what is inside a file is its own");
    }

    proptest! {
        #[test]
        fn any_bytes_come_back(bytes in proptest::collection::vec(any::<u8>(), 0..2000), at in 0..4000usize, byte: u8) {
            let _ = files(&bytes);
            let mut changed = archive();
            let at = at % changed.len();
            changed[at] = byte;
            let _ = files(&changed);
        }
    }
}
