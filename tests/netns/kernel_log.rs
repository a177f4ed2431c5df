//! What kernels say of their troubles, in their own lines: read from a character device that hands out one line by each read, as
//! `/dev/kmsg` does, where no kernel can be had to say it. What `tests/vm` has a real one say is not here.

use std::io::Write as _;
use std::process::{ChildStdin, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::time::{ClockId, clock_gettime};
use serde_json::Value;

use crate::machine::{Checked, Machine, program};
use crate::standalone::Running;
use crate::support::wait::within;

const SOON: Duration = Duration::from_secs(30);
/// So long the machine has been up, at least, on the clocks of the program: longer than any fault stands.
const UP: Duration = Duration::from_secs(2 * 24 * 3600);
/// Young enough for everything.
const NOW: Duration = Duration::ZERO;

/// A machine whose kernel's log is a terminal, into which the test types.
struct Log {
    machine: Machine,
    keys: ChildStdin,
    _terminal: Running,
    sequence: u64,
}

impl Log {
    fn open() -> Result<Self> {
        let machine = Machine::plain()?;
        machine.write("dev/kmsg", "")?;
        let name = machine.path("terminal");
        let hold = format!("stty -echo; tty > {0}.new; mv {0}.new {0}; exec sleep 600", name.display());
        let mut command = machine.net().command("script");
        let mut script =
            command.args(["-qec", &hold, "/dev/null"]).stdin(Stdio::piped()).stdout(Stdio::null()).spawn()?;
        let keys = script.stdin.take().context("piped")?;
        let terminal = Running(script);
        let device = within(SOON, || Ok(std::fs::read_to_string(&name)?))?;
        machine.run(&["mount", "--bind", device.trim(), &machine.place("dev/kmsg")])?;
        Ok(Log { machine, keys, _terminal: terminal, sequence: 0 })
    }

    /// One line of the kernel's, of this age.
    fn say(&mut self, age: Duration, text: &str) -> Result<()> {
        let now = Duration::from(clock_gettime(ClockId::CLOCK_MONOTONIC)?) + UP;
        let at = now.checked_sub(age).context("older than the machine")?;
        self.sequence += 1;
        Ok(writeln!(self.keys, "3,{},{},-;{text}", self.sequence, at.as_micros())?)
    }

    /// One look, after the kernel has said this: it has been read when what is said last is told.
    fn look(&mut self, lines: &[(Duration, &str)]) -> Result<Checked> {
        within(SOON, || {
            lines.iter().try_for_each(|(age, text)| self.say(*age, text))?;
            let last = format!("nvme{}n1", self.sequence);
            std::fs::create_dir_all(self.machine.path("sys/class/block").join(&last))?;
            self.say(
                NOW,
                &format!("I/O error, dev {last}, sector 2048 op 0x0:(READ) flags 0x0 phys_seg 1 prio class 2"),
            )?;
            let checked = self.check()?;
            let seen = checked.json["verdict"]["findings"].as_array().into_iter().flatten();
            ensure!(
                seen.into_iter().any(|it| it.to_string().contains(&last)),
                "not all is read: {:?}",
                checked.codes()
            );
            Ok(checked)
        })
    }

    fn check(&self) -> Result<Checked> {
        let up = UP.as_secs().to_string();
        let mut command = self.machine.net().command("unshare");
        command.args(["--time", "--fork", "--monotonic", &up, "--boottime", &up, "--"]).arg(program());
        let output = command.args(["check", "-o", "json", "--host-root", &self.machine.place("")]).output()?;
        let json = serde_json::from_slice(&output.stdout).with_context(|| format!("not JSON: {output:?}"))?;
        Ok(Checked { json, status: output.status.code() })
    }
}

#[test]
fn a_fault_of_kernel_and_hardware_is_told_as_bad_as_it_is_and_for_as_long_as_it_stands() -> Result<()> {
    let day = Duration::from_secs(24 * 3600);
    let (oops, hardware, stuck) = ("KernelOops", "HardwareErrors", "UnregisterNetDevice");
    let mut log = Log::open()?;
    // Line, code, severity, what is told, and how old a line is that says nothing any more.
    for (line, code, severity, detail, old) in [
        (
            "BUG: kernel NULL pointer dereference, address: 0000000000000008",
            oops,
            "warning",
            "The kernel failed, and does not trust itself until the next boot",
            None,
        ),
        (
            "watchdog: BUG: soft lockup - CPU#3 stuck for 22s! [kworker/3:1:144]",
            oops,
            "warning",
            "A CPU was stuck in the kernel (3)",
            Some(Duration::from_secs(600)),
        ),
        ("{1}[Hardware Error]: event severity: corrected", hardware, "info", "corrected an error", Some(day)),
        (
            "mce: [Hardware Error]: CPU 2: Machine Check Exception: 5 Bank 4: be00000000010091",
            hardware,
            "warning",
            "an error that it could not correct",
            Some(day),
        ),
        ("{1}[Hardware Error]: event severity: fatal", hardware, "critical", "reports a fatal error", Some(day)),
        (
            "unregister_netdevice: waiting for eth0 to become free. Usage count = 1",
            stuck,
            "warning",
            "The network device eth0 cannot be deleted",
            Some(Duration::from_secs(30)),
        ),
    ] {
        let told = |checked: &Checked| checked.finding(code).ok().cloned();
        let finding: Value = told(&log.look(&[(NOW, line)])?).with_context(|| line.to_owned())?;
        let said = finding["detail"].as_str().unwrap_or_default();
        ensure!(finding["severity"] == severity && said.contains(detail) && said.contains(line), "{finding}");
        // The log of another boot, and lines of this one that count no more.
        let later: Vec<(Duration, &str)> = old.map(|old| (old, line)).into_iter().collect();
        let finding = told(&log.look(&later)?);
        ensure!(finding.is_none(), "{finding:?}");
    }
    // A program that crashes is no fault of the kernel.
    let checked =
        log.look(&[(NOW, "traps: node[812] general protection fault ip:7f1a2c sp:7ffc12 error:0 in libc.so.6")])?;
    ensure!(checked.finding(oops).is_err(), "{:?}", checked.codes());
    Ok(())
}
