//! Real containerds, of both major versions, started on stores that are damaged as crashes and disks damage them: what they say
//! and do about it differs, and what is told is the store.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::capacity::worker_on;
use crate::machine::{Checked, Machine};
use crate::standalone::Running;
use crate::support::host::tail;
use crate::support::parts;
use crate::support::wait::within;

const SOON: Duration = Duration::from_secs(60);
const CODE: &str = "ContainerdStoreCorrupt";
const META: &str = "/var/lib/containerd/io.containerd.metadata.v1.bolt/meta.db";

/// Starts one on the machine.
fn start(machine: &Machine, program: &Path) -> Result<Running> {
    machine.write("config.toml", "version = 2\n")?;
    let mut command = machine.net().command(program);
    // The shim is looked for on the path, and containerd 2 has its own.
    let beside = program.parent().into_iter().map(|it| it.display().to_string());
    let path: Vec<String> = beside.chain([std::env::var("PATH")?]).collect();
    command.args(["--config", &machine.place("config.toml")]).env("PATH", path.join(":"));
    command.stdout(Stdio::null()).stderr(std::fs::File::create(machine.path("log"))?);
    Ok(Running(command.spawn()?))
}

/// Whether it has loaded what it can.
fn serves(machine: &Machine) -> Result<bool> {
    Ok(std::fs::read_to_string(machine.path("log"))?.contains("containerd successfully booted"))
}

fn answers(machine: &Machine) -> Result<()> {
    machine.run(&["ctr", "--connect-timeout", "1s", "version"]).map(drop)
}

fn on_damaged_stores(program: &Path) -> Result<()> {
    let machine = worker_on(&[])?;
    machine.run(&["mount", "-t", "tmpfs", "none", "/run"])?;
    let healthy = start(&machine, program)?;
    within(SOON, || answers(&machine))?;
    let pause = parts::archive("pause.tar")?;
    let pause = pause.to_str().context("a path in UTF-8")?;
    machine.run(&["ctr", "--namespace", "k8s.io", "images", "import", pause])?;
    drop(healthy);
    machine.run(&["cp", "-a", "/var/lib/containerd", "/var/lib/good"])?;
    let again = || machine.run(&["sh", "-c", "rm -rf /var/lib/containerd && cp -a /var/lib/good /var/lib/containerd"]);
    for (damage, said, ends) in [
        ("truncate -s 4096 META", "is cut off: it has 4096 bytes", false),
        ("truncate -s 10 META", "is no database any more", false),
        ("dd if=/dev/zero bs=4096 count=2 conv=notrunc status=none of=META", "is no database any more", false),
        ("dd if=/dev/zero bs=4096 seek=2 count=20 conv=notrunc status=none of=META", "is damaged: its page", true),
    ] {
        again()?;
        machine.run(&["sh", "-ec", &damage.replace("META", META)])?;
        let mut containerd = start(&machine, program)?;
        // It goes on without the plugin for Kubernetes, or it ends at the first page that is not one.
        let settled = || {
            let done = if ends { containerd.0.try_wait()?.is_some() } else { serves(&machine)? };
            ensure!(done, "not yet: {}", tail(&machine.path("log")));
            Ok(())
        };
        within(SOON, settled).context(damage)?;
        let checked = machine.check_itself()?;
        tells_of_the_store(&checked, said, ends)
            .with_context(|| format!("{damage}: {}", tail(&machine.path("log"))))?;
    }
    // An empty database it makes anew: nothing is damaged any more, and all images are forgotten.
    again()?;
    machine.run(&["truncate", "-s", "0", META])?;
    let containerd = start(&machine, program)?;
    within(SOON, || answers(&machine))?;
    ensure!(machine.run(&["ctr", "--namespace", "k8s.io", "images", "ls", "-q"])?.is_empty(), "it forgot them");
    ensure!(machine.check_itself()?.finding(CODE).is_err(), "its own repair");
    drop(containerd);
    // The copy of before, and it is over.
    again()?;
    let _containerd = start(&machine, program)?;
    within(SOON, || answers(&machine))?;
    ensure!(machine.run(&["ctr", "--namespace", "k8s.io", "images", "ls", "-q"])?.contains("pause"), "it knows it");
    let checked = machine.check_itself()?;
    ensure!(checked.finding(CODE).is_err() && checked.finding("ContainerdDown").is_err(), "{:?}", checked.codes());
    Ok(())
}

/// Requires that the store is the root of everything that is told of the runtime, which has ended or goes on without CRI.
fn tells_of_the_store(checked: &Checked, said: &str, ended: bool) -> Result<()> {
    let finding = checked.finding(CODE)?;
    let detail = finding["detail"].to_string();
    ensure!(finding["subject"] == META && detail.contains(said), "{finding}");
    ensure!(finding["severity"] == "critical" && finding["causedBy"].is_null(), "{finding}");
    ensure!(finding["next"].to_string().contains("do not restart anything"), "{finding}");
    ensure!(checked.condition("RuntimeProblem") == ("True", CODE), "{:?}", checked.condition("RuntimeProblem"));
    ensure!(ended != detail.contains("; containerd runs without its CRI plugin"), "{finding}");
    ensure!(ended == checked.finding("ContainerdDown").is_ok(), "{:?}", checked.codes());
    let findings = checked.json["verdict"]["findings"].as_array().context("findings")?;
    for other in findings.iter().filter(|it| it["area"] == "runtime" && it["code"] != CODE) {
        ensure!(other["causedBy"]["code"] == CODE, "{other}");
    }
    Ok(())
}

#[test]
fn containerd_1_on_damaged_stores() -> Result<()> {
    on_damaged_stores(Path::new("containerd"))
}

#[test]
fn containerd_2_on_damaged_stores() -> Result<()> {
    on_damaged_stores(&parts::containerd_2()?)
}
