use std::collections::BTreeSet;
use std::io::Write as _;
use std::time::Instant;

use super::*;
use crate::facts::KernelFault;

fn this_machine() -> KernelLogSource {
    KernelLogSource::new(HostRoot::new("/"))
}

fn told(log: &KernelLog) -> BTreeSet<(KernelFault, String)> {
    log.events.iter().map(|event| (event.fault, event.subject.clone())).collect()
}

/// What somebody else has the kernel log, by a program's own facility.
fn log_line(text: &str) {
    let mut device = OpenOptions::new().write(true).open(DEVICE).expect("root may write to the log");
    // Without its end it would wait in the kernel for the next one.
    device.write_all(format!("{text}\n").as_bytes()).expect("a line is written");
}

#[tokio::test]
async fn the_device_and_the_system_call_tell_the_same() {
    let mut by_device = this_machine();
    let mut by_call = KernelLogSource { way: Way::Call(Duration::ZERO), ..this_machine() };
    // Somebody may cause a line between the two.
    for _ in 0..20 {
        let one = by_device.look().await.expect("the device can be read");
        let other = by_call.look().await.expect("dmesg runs");
        if told(&one) == told(&other) {
            assert!(matches!(by_call.way, Way::Call(last) if last > Duration::ZERO), "lines were read");
            return;
        }
    }
    panic!("they differ");
}

#[tokio::test]
async fn a_line_wakes_it_and_only_the_kernel_is_believed() {
    let mut source = this_machine();
    source.look().await.expect("the device can be read");
    let Way::Device(_, Some(before)) = source.way else { panic!("the device is open") };
    let tag = format!("nodevitals-test-{}", std::process::id());
    log_line(&format!("EXT4-fs error (device {tag}): this is a test, and nothing is wrong"));
    let began = Instant::now();
    source.wait().await;
    let log = source.look().await.expect("the device can be read");
    assert!(began.elapsed() < ASK, "it was told");
    let Way::Device(_, Some(next)) = source.way else { panic!("the device is open") };
    assert!(next > before, "the line was read");
    assert!(!log.events.iter().any(|event| event.subject == tag), "anybody who may write there could have said it");
}

#[tokio::test]
async fn no_log_and_something_else_in_its_place() {
    let root = tempfile::tempdir().expect("a temporary directory");
    let mut source = KernelLogSource::new(HostRoot::new(root.path()));
    assert_eq!(source.look().await.expect_err("there is none").reason, Reason::Missing);
    std::fs::create_dir(root.path().join("dev")).expect("mkdir");
    std::fs::write(root.path().join("dev/kmsg"), "").expect("write");
    assert_eq!(source.look().await.expect_err("a file").reason, Reason::WrongKind);
}

#[test]
fn a_process_that_goes_on_and_a_disk_that_was_taken_away_are_over() {
    let host = HostRoot::new("/");
    let event = |fault, subject: &str, line: &str| KernelEvent {
        fault,
        subject: subject.into(),
        first_at: jiff::Timestamp::UNIX_EPOCH,
        times: 1,
        line: line.into(),
    };
    let own = format!("test:{}", std::process::id());
    assert!(is_over(&host, &event(KernelFault::TaskHung, &own, "")), "this process runs");
    assert!(is_over(&host, &event(KernelFault::TaskHung, "gone:4194304", "")));
    assert!(is_over(&host, &event(KernelFault::DiskError, "nodisk", "I/O error, dev nodisk, sector 0")));
    let disk = std::fs::read_dir("/sys/class/block").expect("sysfs").next().expect("a disk").expect("an entry");
    let disk = disk.file_name().into_string().expect("UTF-8");
    assert!(!is_over(&host, &event(KernelFault::DiskError, &disk, "I/O error")));
    assert!(!is_over(&host, &event(KernelFault::FilesystemError, "sda1", "")));
}
