//! Copies of the stores of real containerds, damaged as crashes and disks damage them.

use super::*;
use crate::agent::observe::store::StoreSource;

const META: &str = "io.containerd.metadata.v1.bolt/meta.db";

/// A copy of a store, which stands for a node's root.
struct Copy(tempfile::TempDir);

impl Copy {
    fn of(store: &Path) -> Self {
        let root = tempfile::tempdir().expect("a temporary directory");
        for directory in [META, "io.containerd.content.v1.content/blobs/sha256"] {
            let (from, to) = (store.join(directory), root.path().join("store").join(directory));
            std::fs::create_dir_all(to.parent().expect("has one")).expect("mkdir");
            let copied = Command::new("cp").arg("-r").args([from, to]).status().expect("cp");
            assert!(copied.success());
        }
        Copy(root)
    }

    fn meta(&self) -> PathBuf {
        self.0.path().join("store").join(META)
    }

    /// The same with this done to its database.
    fn change(self, change: impl FnOnce(&mut Vec<u8>)) -> Self {
        let mut bytes = std::fs::read(self.meta()).expect("readable");
        change(&mut bytes);
        std::fs::write(self.meta(), bytes).expect("write");
        self
    }

    fn faults(&self) -> Vec<String> {
        let faults = StoreSource::new(HostRoot::new(self.0.path())).look("/store").expect("readable");
        faults.into_iter().map(|fault| fault.what).collect()
    }
}

/// Its size of a page, where its newest meta page is, and the pages that this tells: the root of the tree, and one more than
/// the last.
fn layout(meta: &[u8]) -> (usize, usize, usize, usize) {
    let long = |at: usize| usize::try_from(u64::from_ne_bytes(meta[at..at + 8].try_into().expect("8"))).expect("small");
    let size = u32::from_ne_bytes(meta[24..28].try_into().expect("4")) as usize;
    let newest = if long(size + 16 + 48) > long(16 + 48) { size } else { 0 };
    (size, newest, long(newest + 16 + 16), long(newest + 16 + 40))
}

/// What is done to a database.
type Change = Box<dyn FnOnce(&mut Vec<u8>)>;

/// Each damage, and how what is said of it begins.
fn damages(size: usize, root: usize, pages: usize) -> [(&'static str, Change); 8] {
    let wipe =
        move |bytes: &mut Vec<u8>, lost: std::ops::Range<usize>| bytes[lost.start * size..lost.end * size].fill(0);
    let flip = |bytes: &mut Vec<u8>, at: usize| bytes[at] ^= 0x10;
    [
        ("is empty", Box::new(Vec::clear)),
        ("is no database any more", Box::new(|bytes| bytes.truncate(10))),
        ("is cut off", Box::new(move |bytes| bytes.truncate((pages - 1) * size))),
        ("is no database any more", Box::new(move |bytes| wipe(bytes, 0..2))),
        (
            "is no database any more",
            Box::new(move |bytes| {
                flip(bytes, 16 + 8);
                flip(bytes, size + 16 + 50);
            }),
        ),
        ("is damaged: its page", Box::new(move |bytes| wipe(bytes, root..root + 1))),
        ("is damaged: its page", Box::new(move |bytes| flip(bytes, root * size))),
        (
            "is damaged: its page",
            Box::new(move |bytes| {
                wipe(bytes, 2..root);
                wipe(bytes, root + 1..pages);
            }),
        ),
    ]
}

async fn damaged_copies(program: PathBuf) {
    let mut containerd = Containerd::start(program);
    let mut source = containerd.source();
    eventually(&containerd, &mut source, "ready", answers).await;
    let asking = Asking::of(&containerd).await;
    let sandbox = asking.sandbox("web", 0, true).await.expect("it starts");
    let store = containerd.root.path().join("root");
    // Copies made while it writes: none is damaged, whatever transaction each of its pages is of.
    let live = StoreSource::new(HostRoot::new(containerd.root.path())).look("/root");
    assert_eq!(live, Ok(vec![]));
    for round in 0..5 {
        let (made, seen) = tokio::join!(asking.containers(&sandbox, round, 20), async {
            let root = containerd.root.path().to_owned();
            let look = move |_| StoreSource::new(HostRoot::new(&root)).look("/root").expect("readable");
            let looks = move || (0..20).flat_map(look).collect::<Vec<_>>();
            tokio::task::spawn_blocking(looks).await.expect("no panic")
        });
        assert_eq!((made.len(), seen), (20, vec![]), "while it writes");
    }
    containerd.kill();
    let copy = || Copy::of(&store);
    assert_eq!(copy().faults(), Vec::<String>::new(), "killed with SIGKILL it is whole");
    let (size, newest, root, pages) = layout(&std::fs::read(copy().meta()).expect("readable"));
    for (index, (said, damage)) in damages(size, root, pages).into_iter().enumerate() {
        let faults = copy().change(damage).faults();
        assert!(faults.len() == 1 && faults[0].starts_with(said), "{index} {said}: {faults:?}");
    }
    let older = |bytes: &mut Vec<u8>| bytes[newest + 16 + 50] ^= 1;
    assert_eq!(copy().change(older).faults(), Vec::<String>::new(), "torn in one of two: the one before is in force");
}

#[tokio::test]
async fn containerd_1_damaged_copies_of_its_store() {
    damaged_copies(one()).await;
}

#[tokio::test]
async fn containerd_2_damaged_copies_of_its_store() {
    damaged_copies(two()).await;
}
