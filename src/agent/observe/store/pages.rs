//! The tree of a bbolt database, page by page: whether each that is reached from its root is there.
//!
//! bbolt writes no page in place: what one transaction reaches stays until a later one may use the room. So a walk is only
//! worth something if the newest transaction is the same before and after it (`internal/common/page.go`, `bucket.go`).

/// Bytes before a page's elements: id (8), flags (2), count (2), overflow (4).
const HEADER: usize = 16;
const BRANCH: u16 = 0x01;
const LEAF: u16 = 0x02;
/// Bytes of an element: in a branch position, key's length (4 each), page (8); in a leaf flags, position, key's and value's
/// length (4 each).
const ELEMENT: usize = 16;
/// Flag of an element whose value is a bucket, which begins with its root page; that of an inline one is 0.
const BUCKET: u32 = 0x01;
/// A database with more pages is not walked to its end: that is 256 MiB.
const MOST: u64 = 65_536;

/// What is wrong below the root page. `read` reads so many bytes from the beginning of a page; `pages` is one more than the
/// highest page in use.
pub(super) fn fault<E>(
    root: u64,
    pages: u64,
    page_size: u32,
    read: impl Fn(u64, usize) -> Result<Vec<u8>, E>,
) -> Result<Option<String>, E> {
    let mut next = vec![root];
    let mut count = 0;
    while let Some(id) = next.pop() {
        count += 1;
        // A tree with a loop has more pages than the file.
        if id < 2 || id >= pages || count > pages {
            return Ok(Some(format!("its page {id} is not where it should be")));
        }
        if count > MOST {
            return Ok(None);
        }
        let head = read(id, HEADER)?;
        let overflow = number(&head, 12, 4).unwrap_or(u64::MAX);
        let (kind, elements) = (number(&head, 8, 2), number(&head, 10, 2).unwrap_or_default());
        let lost = || Some(format!("its page {id} of {pages} is lost"));
        if number(&head, 0, 8) != Some(id) || overflow >= pages - id {
            return Ok(lost());
        }
        let size = usize::try_from((overflow + 1) * u64::from(page_size)).unwrap_or(usize::MAX);
        let page = read(id, size)?;
        let found = match kind {
            Some(kind) if kind == u64::from(BRANCH) => children(&page, elements),
            Some(kind) if kind == u64::from(LEAF) => buckets(&page, elements),
            _ => None,
        };
        match found {
            Some(found) => next.extend(found),
            None => return Ok(lost()),
        }
    }
    Ok(None)
}

/// The pages below a branch.
fn children(page: &[u8], elements: u64) -> Option<Vec<u64>> {
    places(elements).map(|at| number(page, at + 8, 8)).collect()
}

/// The root pages of the buckets in a leaf.
fn buckets(page: &[u8], elements: u64) -> Option<Vec<u64>> {
    let mut found = Vec::new();
    for at in places(elements) {
        let field = |offset| number(page, at + offset, 4).and_then(|it| usize::try_from(it).ok());
        let (flags, position, key, value) = (field(0)?, field(4)?, field(8)?, field(12)?);
        let begins = at + position + key;
        page.get(begins..begins + value)?;
        if flags & BUCKET as usize != 0 {
            found.extend(Some(number(page, begins, 8)?).filter(|root| *root != 0));
        }
    }
    Some(found)
}

fn places(elements: u64) -> impl Iterator<Item = usize> {
    (0..usize::try_from(elements).unwrap_or_default()).map(|index| HEADER + index * ELEMENT)
}

/// A number of so many bytes, in the byte order of the machine that wrote it: this one.
fn number(bytes: &[u8], at: usize, length: usize) -> Option<u64> {
    let mut word = [0; 8];
    let from = if cfg!(target_endian = "little") { 0 } else { 8 - length };
    word[from..from + length].copy_from_slice(bytes.get(at..at + length)?);
    Some(u64::from_ne_bytes(word))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SIZE: u32 = 64;

    /// A page with these elements of four words each, and what follows them.
    fn page(id: u64, flags: u16, elements: &[[u32; 4]], rest: &[u8]) -> Vec<u8> {
        let mut page = id.to_ne_bytes().to_vec();
        page.extend(flags.to_ne_bytes());
        page.extend(u16::try_from(elements.len()).expect("few").to_ne_bytes());
        page.extend([0; 4]);
        page.extend(elements.iter().flatten().flat_map(|word| word.to_ne_bytes()));
        page.extend(rest);
        page.resize(SIZE as usize, 0);
        page
    }

    /// Two meta pages, a branch, a leaf with a bucket, and that bucket's leaf.
    fn tree() -> Vec<u8> {
        let below = |page: u32| if cfg!(target_endian = "little") { [0, 0, page, 0] } else { [0, 0, 0, page] };
        let bucket = [b"k".as_slice(), &4_u64.to_ne_bytes(), &[0; 8]].concat();
        [
            vec![0; 2 * SIZE as usize],
            page(2, BRANCH, &[below(3)], &[]),
            page(3, LEAF, &[[BUCKET, 16, 1, 16]], &bucket),
            page(4, LEAF, &[[0, 16, 1, 1]], b"kv"),
        ]
        .concat()
    }

    fn walk(file: &[u8], root: u64, pages: u64) -> Option<String> {
        let read = |id: u64, length: usize| {
            let at = usize::try_from(id).expect("small") * SIZE as usize;
            file.get(at..at + length).map(<[u8]>::to_vec).ok_or(())
        };
        fault(root, pages, SIZE, read).unwrap_or(Some("cut".into()))
    }

    #[test]
    fn each_page_below_the_root_is_needed() {
        assert_eq!(walk(&tree(), 2, 5), None);
        for lost in 2..5 {
            let mut file = tree();
            file[lost * SIZE as usize..(lost + 1) * SIZE as usize].fill(0);
            assert_eq!(walk(&file, 2, 5), Some(format!("its page {lost} of 5 is lost")));
        }
        assert_eq!(walk(&tree()[..4 * SIZE as usize], 2, 5).as_deref(), Some("cut"));
        assert_eq!(walk(&tree(), 2, 4).as_deref(), Some("its page 4 is not where it should be"));
    }

    #[test]
    fn a_tree_that_loops_ends() {
        let mut file = tree();
        file[2 * SIZE as usize + HEADER + 8] = 2;
        assert_eq!(walk(&file, 2, 5).as_deref(), Some("its page 2 is not where it should be"));
    }

    proptest! {
        #[test]
        fn any_bytes_are_an_answer(changes in prop::collection::vec((0_usize..320, any::<u8>()), 0..20), root in 0_u64..8) {
            let mut file = tree();
            for (at, byte) in changes {
                file[at] = byte;
            }
            let _ = walk(&file, root, 5);
        }
    }
}
