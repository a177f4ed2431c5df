//! What never answers, for longer than any deadline: nothing of this program grows, and everything else keeps its rhythm.

#![allow(clippy::print_stderr, reason = "counts of a run of minutes are to be read")]

use std::collections::BTreeMap;
use std::process::Stdio;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::machine::{Machine, program};
use crate::standalone::{Running, get};
use crate::support::wait::eventually;

const SOON: Duration = Duration::from_secs(30);
/// Longer than any deadline of a look: what hangs then has its thread.
const HUNG: Duration = Duration::from_secs(15);
/// Dozens of looks at what is asked most often; longer where this variable says so, in seconds.
const WATCHED: Duration = Duration::from_secs(30);
const FOR: &str = "NODEVITALS_HANG_SECONDS";

/// `nodevitals standalone` on this machine.
pub(crate) fn start(machine: &Machine, arguments: &[&str]) -> Result<Running> {
    let mut command = machine.net().command(program());
    let running = command.arg("standalone").args(arguments).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    eventually("it has looked", SOON, || get(machine, "/findings").map(|_| ()));
    Ok(Running(running))
}

/// Threads and descriptors of a process.
fn held(running: &Running) -> Result<[usize; 2]> {
    let count =
        |what: &str| Ok::<_, std::io::Error>(std::fs::read_dir(format!("/proc/{}/{what}", running.0.id()))?.count());
    Ok([count("task")?, count("fd")?])
}

/// The least of each within some seconds: looks that coincide need more threads for a moment, what leaks needs them for ever.
fn least(running: &Running) -> Result<[usize; 2]> {
    let mut least = held(running)?;
    for _ in 0..24 {
        sleep(Duration::from_millis(500));
        let now = held(running)?;
        least = [least[0].min(now[0]), least[1].min(now[1])];
    }
    Ok(least)
}

/// How often each source has looked.
fn looks(machine: &Machine) -> Result<BTreeMap<String, u64>> {
    let metrics = get(machine, "/metrics")?;
    let looks = metrics.lines().filter_map(|line| {
        let (source, count) = line.strip_prefix("nodevitals_source_looks_total{source=\"")?.split_once("\"} ")?;
        Some((source.to_owned(), count.parse().ok()?))
    });
    Ok(looks.collect())
}

/// How long nobody answers while it is watched.
fn watched() -> Result<Duration> {
    let told = std::env::var(FOR).ok().map(|text| text.parse().with_context(|| format!("{FOR}={text}"))).transpose()?;
    Ok(told.map_or(WATCHED, Duration::from_secs).max(WATCHED))
}

/// Nothing grows, and these sources go on at their periods, in seconds.
fn stays_as_it_is(machine: &Machine, running: &Running, periods: &[(&str, u64)]) -> Result<()> {
    let watched = watched()?;
    sleep(HUNG);
    let (before, looked) = (least(running)?, looks(machine)?);
    sleep(watched);
    let (now, after) = (looks(machine)?, least(running)?);
    // A connection of somebody who asks for a page, and a thread in reserve.
    ensure!(after[0] <= before[0] + 1 && after[1] <= before[1] + 2, "threads and descriptors: {before:?}, {after:?}");
    eprintln!("{watched:?}: threads and descriptors {before:?} became {after:?}");
    for (source, period) in periods {
        let seen = |looks: &BTreeMap<String, u64>| looks.get(*source).copied().context(source.to_string());
        let count = seen(&now)? - seen(&looked)?;
        eprintln!("{source} looked {count} times, each {period} s are {}", watched.as_secs() / period);
        ensure!(count >= watched.as_secs() / period / 2, "{source} looked {count} times in {watched:?}");
    }
    Ok(())
}

#[test]
fn a_file_system_and_a_containerd_that_never_answer() -> Result<()> {
    let machine = Machine::plain()?;
    machine.run(&["mount", "-t", "tmpfs", "none", "/run"])?;
    let quiet = |argv: &[&str]| -> Result<Running> {
        let mut command = machine.net().command(argv[0]);
        Ok(Running(command.args(&argv[1..]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?))
    };
    let (root, state) = (machine.place("containerd"), machine.place("state"));
    let containerd = quiet(&["containerd", "--root", &root, "--state", &state])?;
    eventually("containerd listens", SOON, || machine.run(&["ctr", "--connect-timeout", "1s", "version"]).map(|_| ()));
    // A file system of FUSE that nobody answers for: whoever asks waits in the kernel.
    let script = "exec 3<>/dev/fuse; \
                  mount -i -t fuse -o fd=3,rootmode=40000,user_id=0,group_id=0 hung /var/log; exec sleep infinity";
    let hung = quiet(&["sh", "-c", script])?;
    eventually("the file system is mounted", SOON, || {
        machine.run(&["grep", "-q", " /var/log .* fuse ", "/proc/thread-self/mountinfo"]).map(|_| ())
    });
    let running = start(&machine, &[])?;
    let pid = Pid::from_raw(i32::try_from(containerd.0.id())?);
    let own = Pid::from_raw(
        machine
            .run(&["pgrep", "-P", &pid.to_string(), "containerd"])
            .map_or(Ok(pid.as_raw()), |it| it.trim().parse())?,
    );
    kill(own, Signal::SIGSTOP)?;
    eventually("it is told that containerd is silent", SOON, || {
        ensure!(get(&machine, "/findings")?.contains("ContainerdUnresponsive"), "not yet");
        Ok(())
    });
    let result =
        stays_as_it_is(&machine, &running, &[("processes", 2), ("conntrack", 5), ("memory", 10), ("health", 5)]);
    let findings = get(&machine, "/findings")?;
    kill(own, Signal::SIGKILL)?;
    // Nobody can answer any more, so the kernel lets go whoever waits.
    drop(hung);
    result?;
    ensure!(findings.contains("statvfs /var/log: "), "{findings}");
    Ok(())
}

#[test]
fn fifos_in_the_place_of_files() -> Result<()> {
    let machine = Machine::plain()?;
    let root = machine.place("root");
    let files = "proc/meminfo proc/vmstat proc/loadavg proc/stat proc/cgroups proc/locks proc/1/mountinfo proc/1/stat proc/1/cmdline \
                 proc/net/ip_tables_names proc/pressure/memory proc/pressure/io proc/sys/kernel/hostname \
                 proc/sys/kernel/random/boot_id proc/sys/kernel/pid_max proc/sys/fs/file-nr etc/machine-id etc/fstab dev/kmsg \
                 etc/containerd/config.toml run/containerd/containerd.sock run/xtables.lock var/log/wtmp \
                 var/lib/kubelet/config.yaml etc/kubernetes/kubelet.conf etc/cni/net.d/10-x.conflist opt/cni/bin/bridge \
                 var/lib/calico/nodename var/lib/kubelet/cpu_manager_state etc/kubernetes/manifests/a.yaml \
                 var/lib/containerd/io.containerd.metadata.v1.bolt/meta.db sys/class/dmi/id/product_uuid";
    machine.run(&["mkdir", "-p", &format!("{root}/proc/self")])?;
    for file in files.split_whitespace() {
        let place = machine.path("root").join(file);
        std::fs::create_dir_all(place.parent().context("it has one")?)?;
        nix::unistd::mkfifo(&place, nix::sys::stat::Mode::S_IRWXU)?;
    }
    let running = start(&machine, &["--host-root", &root])?;
    stays_as_it_is(
        &machine,
        &running,
        &[("processes", 2), ("conntrack", 5), ("memory", 10), ("cni", 15), ("kubelet", 30)],
    )?;
    let findings = get(&machine, "/findings")?;
    for said in ["/etc/cni/net.d/10-x.conflist", "is a FIFO, not a file"] {
        ensure!(findings.contains(said), "{said:?} is not in {findings}");
    }
    Ok(())
}
