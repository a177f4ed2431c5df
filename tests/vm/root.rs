//! The files of a virtual machine: a worker whose kubelet does not run.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::support::pki::Authority;
use crate::support::shell;

/// The first process: the file systems, then whatever comes by the second serial port.
const INIT: &str = r"#!/bin/sh
export PATH=/bin:/usr/sbin
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t cgroup2 cgroup2 /sys/fs/cgroup
ip link set lo up
hostname vm
exec 3<>/dev/ttyS1
stty raw -echo <&3
printf '\n0\036' >&3
exec sh /dev/ttyS1 </dev/null >&3 2>&1
";
/// What iptables is, where the rules are those of nf_tables.
pub const IPTABLES: [&str; 6] =
    ["iptables", "iptables-save", "iptables-restore", "ip6tables", "ip6tables-save", "ip6tables-restore"];
/// Where iptables has a library for each match and target.
const EXTENSIONS: &str = "/usr/lib/x86_64-linux-gnu/xtables";

/// Writes them below `root`: the program, busybox, these programs in `/usr/sbin`, and the modules of the kernel, which loads
/// by itself what it needs.
pub fn make(root: &Path, kernel: &Path, programs: &[PathBuf]) -> Result<()> {
    let program = std::env::var_os("NODEVITALS_BIN").context("set NODEVITALS_BIN to what scripts/build.sh makes")?;
    let directories =
        ["bin", "sbin", "usr/sbin", "dev", "proc", "sys", "tmp", "etc/kubernetes", "run", "var/log", "www"];
    for directory in directories.iter().chain(&["var/lib/kubelet"]) {
        fs::create_dir_all(root.join(directory))?;
    }
    // By a process of its own: what another test forks meanwhile must not hold it open, since it is executed at once.
    shell::read(Command::new("cp").arg("/bin/busybox").arg(root.join("bin")))?;
    // Of an API server that is not there.
    copy(Authority::new(root.with_file_name("pki"))?.certificate(), &root.join("ca.crt"))?;
    shell::read(Command::new("chroot").arg(root).args(["/bin/busybox", "--install", "-s", "/bin"]))?;
    std::os::unix::fs::symlink("/bin/busybox", root.join("sbin/modprobe"))?;
    shell::read(Command::new("cp").arg("-r").arg(kernel.join("lib")).arg(root))?;

    copy(Path::new(&program), &root.join("bin/nodevitals"))?;
    let mut dynamic = vec![PathBuf::from(program)];
    for program in programs {
        copy(program, &root.join("usr/sbin").join(program.file_name().context("a name")?))?;
        dynamic.push(program.clone());
    }
    if programs.iter().any(|program| program.ends_with("iptables")) {
        for extension in fs::read_dir(EXTENSIONS)? {
            let extension = extension?.path();
            copy(&extension, &root.join(&extension.to_string_lossy()[1..]))?;
            dynamic.push(extension);
        }
    }
    for library in libraries(&dynamic)? {
        copy(Path::new(&library), &root.join(&library[1..]))?;
    }

    fs::write(root.join("var/lib/kubelet/config.yaml"), "kind: KubeletConfiguration\nhealthzPort: 0\n")?;
    fs::write(root.join("etc/machine-id"), "0123456789abcdef0123456789abcdef\n")?;
    fs::write(root.join("etc/protocols"), "icmp 1 ICMP\ntcp 6 TCP\nudp 17 UDP\n")?;
    fs::write(root.join("init"), INIT)?;
    shell::read(Command::new("chmod").arg("755").arg(root.join("init")))?;
    Ok(())
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to.parent().context("below the root")?)?;
    fs::copy(from, to).with_context(|| format!("{} is missing: run scripts/setup.sh test", from.display()))?;
    Ok(())
}

/// The shared libraries that these need; none for a static one, which makes `ldd` fail.
fn libraries(programs: &[PathBuf]) -> Result<BTreeSet<String>> {
    let output = Command::new("ldd").args(programs).output().context("ldd does not start")?;
    let text = String::from_utf8(output.stdout)?;
    // `libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x...)`, `/lib64/ld-linux-x86-64.so.2 (0x...)`; a title ends with a colon.
    let paths = text.lines().filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')));
    Ok(paths.filter(|path| !path.ends_with(':')).map(str::to_owned).collect())
}
