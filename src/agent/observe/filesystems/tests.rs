//! Mount tables of workers, and this machine's own.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::symlink;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use super::*;

struct Node {
    dir: tempfile::TempDir,
    source: FilesystemSource,
}

impl Node {
    /// A node with these mounts. The directories are all on the file system of the temporary directory, so kinds whose
    /// device number is verified are unreadable; `overlay` and `btrfs` are measured.
    fn new(table: &str) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        for path in ["proc/1", "etc", "var/lib/kubelet", "var/lib/containerd", "var/log", "data/kubelet"] {
            std::fs::create_dir_all(dir.path().join(path)).expect("mkdir");
        }
        let source = FilesystemSource::new(HostRoot::new(dir.path()), Blocking::default());
        let node = Node { dir, source };
        node.write("proc/1/mountinfo", table);
        node
    }

    fn write(&self, path: &str, text: &str) {
        let path = self.dir.path().join(path);
        std::fs::create_dir_all(path.parent().expect("not the root")).expect("mkdir");
        std::fs::write(path, text).expect("write");
    }

    async fn look(&mut self) -> Vec<Filesystem> {
        let roles = [
            (Role::Root, "/"),
            (Role::Nodefs, "/var/lib/kubelet"),
            (Role::Imagefs, "/var/lib/containerd"),
            (Role::Logs, "/var/log"),
        ];
        let roles: Vec<_> = roles.into_iter().map(|(role, path)| (role, path.to_owned())).collect();
        self.source.changed();
        self.source.look(Timestamp::now(), &roles).await.expect("readable")
    }
}

fn points(found: &[Filesystem]) -> Vec<(&str, &[Role])> {
    found.iter().map(|each| (each.mount_point.as_str(), each.roles.as_slice())).collect()
}

const PLAIN: &str = "1 0 0:30 / / rw - btrfs /dev/sda1 rw\n\
    2 1 0:4 / /proc rw - proc proc rw\n\
    3 1 0:31 / /var/lib/containerd rw - btrfs /dev/sdb1 rw\n\
    4 1 0:30 /var/lib/kubelet/pods/1 /var/lib/kubelet/pods/1/volumes/x ro - btrfs /dev/sda1 rw\n\
    5 1 0:50 / /var/lib/kubelet/pods/2/nfs rw - nfs4 server:/x ro\n\
    6 1 8:9 / /data rw - ext4 /dev/sdc rw\n";

#[tokio::test]
async fn roles_on_one_device_are_one_file_system() {
    let found = Node::new(PLAIN).look().await;
    let expected: [(&str, &[Role]); 3] =
        [("/", &[Role::Root, Role::Nodefs, Role::Logs]), ("/data", &[]), ("/var/lib/containerd", &[Role::Imagefs])];
    assert_eq!(points(&found), expected);
    assert!(found.iter().all(|each| !each.read_only && !each.meant_read_only), "{found:?}");
    assert!(found[0].space.get().is_some_and(|space| space.bytes >= space.bytes_available && space.bytes > 0));
    assert_eq!(found[1].space, Seen::Absent, "nothing is kept there");
}

#[tokio::test]
async fn a_role_behind_a_link_is_where_the_link_leads() {
    let mut node = Node::new(PLAIN);
    std::fs::remove_dir(node.dir.path().join("var/lib/kubelet")).expect("rmdir");
    symlink("/data/kubelet", node.dir.path().join("var/lib/kubelet")).expect("link");
    std::fs::remove_dir(node.dir.path().join("var/log")).expect("rmdir");
    let found = node.look().await;
    let expected: [(&str, &[Role]); 3] =
        [("/", &[Role::Root]), ("/data", &[Role::Nodefs]), ("/var/lib/containerd", &[Role::Imagefs])];
    assert_eq!(points(&found), expected);
    let error = found[1].space.error().expect("8:9 is not what is there");
    assert_eq!((error.what.as_str(), error.reason), ("/data", Reason::WrongKind));
}

#[tokio::test]
async fn a_network_file_system_without_a_role_is_never_asked() {
    let table = format!("{PLAIN}7 1 0:51 / /mnt rw - fuse.sshfs x rw\n");
    assert_eq!(points(&Node::new(&table).look().await), points(&Node::new(PLAIN).look().await));
}

#[tokio::test]
async fn of_several_paths_of_a_role_the_first_that_exists_counts() {
    let mut node = Node::new(PLAIN);
    let paths = ["/none", "/data", "/var/lib/containerd"].map(|path| (Role::Imagefs, path.to_owned()));
    let found = node.source.look(Timestamp::now(), &paths).await.expect("readable");
    assert_eq!(points(&found)[1], ("/data", &[Role::Imagefs][..]));
}

/// A file system of FUSE that nobody answers for, mounted where only this thread and those that it starts see it.
struct Hung(File);

impl Hung {
    fn mount(point: &Path) -> Self {
        let none = None::<&str>;
        unshare(CloneFlags::CLONE_NEWNS).expect("this test mounts, which only root may");
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).expect("private");
        let device = File::options().read(true).write(true).open("/dev/fuse").expect("this kernel has FUSE");
        let options = format!("fd={},rootmode=40000,user_id=0,group_id=0", device.as_raw_fd());
        mount(Some("hung"), point, Some("fuse"), MsFlags::empty(), Some(options.as_str())).expect("mount");
        Hung(device)
    }
}

/// Descriptors of this process, threads in the mount namespace of this thread, and those of them that are stuck.
fn held() -> [usize; 3] {
    let ours = std::fs::read_link("/proc/thread-self/ns/mnt").expect("a namespace");
    let tasks = std::fs::read_dir("/proc/self/task").expect("threads").flatten().map(|task| task.path());
    let here: Vec<_> =
        tasks.filter(|task| std::fs::read_link(task.join("ns/mnt")).is_ok_and(|it| it == ours)).collect();
    let stat = |task: &PathBuf| std::fs::read_to_string(task.join("stat")).unwrap_or_default();
    let stuck = here.iter().filter(|task| stat(task).contains(") D ")).count();
    [std::fs::read_dir("/proc/thread-self/fd").expect("descriptors").count(), here.len(), stuck]
}

#[test]
fn a_file_system_that_hangs_is_asked_once_and_nobody_else_waits() {
    let looks = async {
        let table = format!("{PLAIN}7 1 0:51 / /var/log rw - fuse.x hung rw\n");
        let mut node = Node::new(&table);
        let hung = Hung::mount(&node.dir.path().join("var/log"));
        let error = |found: &[Filesystem]| {
            let logs = found.iter().find(|each| each.roles == [Role::Logs]).expect("told");
            logs.space.error().map(|error| (error.what.clone(), error.reason))
        };
        let dead = Some(("statvfs /var/log".to_owned(), Reason::TimedOut));
        let ticks = async {
            for _ in 0..20 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        // While the look waits for its deadline everything else goes on.
        let found = tokio::select! {
            found = node.look() => panic!("it answers: {found:?}"),
            () = ticks => node.look().await,
        };
        assert_eq!(error(&found), dead);
        assert!(
            found.iter().any(|each| each.roles.contains(&Role::Imagefs) && each.space.get().is_some()),
            "{found:?}"
        );
        let before = held();
        for _ in 0..100 {
            assert_eq!(error(&node.look().await), dead);
        }
        let after = held();
        // Its room, where the paths lead, and what holds the space: each was asked once.
        assert!(after[2] == before[2] && (1..=3).contains(&after[2]), "{before:?} {after:?}");
        // Others of these tests open files meanwhile, and the runtime has some threads in reserve: not one for each look.
        assert!(after[0] < before[0] + 50 && after[1] < before[1] + 50, "{before:?} {after:?}");

        // The kernel ends what waits as soon as nobody can answer any more.
        drop(hung.0);
        nix::mount::umount2(&node.dir.path().join("var/log"), nix::mount::MntFlags::MNT_DETACH).expect("umount");
        let mut answered = false;
        for _ in 0..1000 {
            answered = error(&node.look().await).is_none();
            if answered {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert!(answered, "it is measured again");
    };
    let run = || tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime").block_on(looks);
    std::thread::scope(|scope| scope.spawn(run).join()).unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}

#[tokio::test]
async fn an_error_that_makes_it_read_only_is_not_meant() {
    let mut node = Node::new(PLAIN);
    node.look().await;
    node.write("proc/1/mountinfo", &PLAIN.replace("btrfs /dev/sda1 rw", "btrfs /dev/sda1 ro"));
    let found = node.look().await;
    assert_eq!((found[0].read_only, found[0].meant_read_only), (true, false));
    node.write("proc/1/mountinfo", &PLAIN.replace("ext4 /dev/sdc rw", "ext4 /dev/sdc rw,emergency_ro"));
    assert!(node.look().await[1].read_only);
}

#[tokio::test]
async fn read_only_from_the_start_is_meant_unless_fstab_or_ext4_know_better() {
    let table = PLAIN.replace("ext4 /dev/sdc rw", "ext4 /dev/sdc ro");
    let meant = |found: &[Filesystem]| (found[1].read_only, found[1].meant_read_only);
    assert_eq!(meant(&Node::new(&table).look().await), (true, true));

    let mut node = Node::new(&table);
    node.write("etc/fstab", "/dev/sdc /data ext4 defaults 0 2\n");
    assert_eq!(meant(&node.look().await), (true, false));
    node.write("etc/fstab", "/dev/sdc /data ext4 noatime,ro 0 2\n");
    assert_eq!(meant(&node.look().await), (true, true));

    let mut node = Node::new(&table);
    std::fs::create_dir_all(node.dir.path().join("sys/dev/block")).expect("mkdir");
    symlink("../../devices/virtual/block/dm-3", node.dir.path().join("sys/dev/block/8:9")).expect("link");
    node.write("sys/fs/ext4/dm-3/errors_count", "2\n");
    assert_eq!(meant(&node.look().await), (true, false));
}

#[tokio::test]
async fn a_volume_bound_read_only_is_not_a_fault_but_a_kubelet_directory_is() {
    let bound = PLAIN.replace("/data rw - ext4", "/data ro - ext4");
    assert!(!Node::new(&bound).look().await[1].read_only);
    let kubelet = format!("{PLAIN}7 1 0:30 /var/lib/kubelet /var/lib/kubelet ro - btrfs /dev/sda1 rw\n");
    assert!(Node::new(&kubelet).look().await[0].read_only);
}

#[tokio::test]
async fn images_that_cannot_be_written_are_meant() {
    let table = "1 0 0:30 / / ro - overlay overlay ro,lowerdir=/a:/b\n2 1 7:0 / /var/log ro - squashfs /dev/loop0 ro\n";
    let found = Node::new(table).look().await;
    assert!(found.iter().all(|each| each.read_only && each.meant_read_only), "{found:?}");
}

#[tokio::test]
async fn a_table_that_is_nonsense_is_an_error() {
    let mut node = Node::new("what is this\n");
    let error = node.source.look(Timestamp::now(), &[]).await.expect_err("nonsense");
    assert_eq!(error.reason, Reason::Malformed);
}

#[tokio::test]
async fn reads_this_machine() {
    let mut source = FilesystemSource::new(HostRoot::new("/"), Blocking::default());
    let found = source.look(Timestamp::now(), &[(Role::Root, "/".to_owned())]).await.expect("readable");
    let root = found.iter().find(|each| each.mount_point == "/").expect("every machine has a root");
    assert!(root.roles == [Role::Root] && root.space.get().is_some_and(|space| space.bytes > 0), "{root:?}");
}
