//! A virtual machine: Debian's kernel with its modules, a static busybox and the program. Its processor is emulated: that
//! works everywhere, a kernel that has nothing else to do boots in seconds, and its clock can be set while it sleeps.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::root;
use crate::support::host::tail;
use crate::support::wait::within;
use crate::support::{parts, shell};

/// A boot takes 3 s on an idle machine of two processors.
const BOOT: Duration = Duration::from_secs(60);
/// What a script inside may take; most take milliseconds.
const SCRIPT: Duration = Duration::from_secs(30);
/// What a page of the agent may take, and a hold-down that the tests set.
pub const SOON: Duration = Duration::from_secs(90);
/// What the emulator answers within.
const ANSWER: Duration = Duration::from_secs(10);
/// Registers of the clock (MC146818).
const SECONDS: u32 = 0;
const MINUTES: u32 = 2;
/// Ends what a script printed.
const END: char = '\x1e';

/// A running virtual machine. It ends with this value, and with the thread that made it.
pub struct Machine {
    qemu: Child,
    commands: ChildStdin,
    output: Receiver<Vec<u8>>,
    control: BufReader<UnixStream>,
    files: TempDir,
}

impl Machine {
    /// Boots one of 512 MiB and one processor, without a network card.
    pub fn boot() -> Result<Self> {
        Self::boot_with(&[])
    }

    /// [`Machine::boot`] with these programs beside busybox.
    pub fn boot_with(programs: &[PathBuf]) -> Result<Self> {
        Self::boot_on(programs, &[])
    }

    /// The same on hardware that these options of the emulator add.
    pub fn boot_on(programs: &[PathBuf], hardware: &[&str]) -> Result<Self> {
        let files = tempfile::tempdir()?;
        let kernel = parts::archive("linux-bookworm")?;
        root::make(&files.path().join("root"), &kernel, programs)?;
        let archive = "cd \"$0\" && find . | busybox cpio -o -H newc > ../initramfs";
        shell::read(Command::new("sh").args(["-c", archive]).arg(files.path().join("root")))?;
        fs::remove_dir_all(files.path().join("root"))?;

        let mut qemu = Command::new("setpriv")
            .args([
                "--pdeathsig",
                "KILL",
                "qemu-system-x86_64",
                "-accel",
                "tcg",
                "-machine",
                "pc",
                "-smp",
                "1",
                "-m",
                "512",
            ])
            .args([
                "-nodefaults",
                "-no-user-config",
                "-display",
                "none",
                "-no-reboot",
                "-rtc",
                "base=2026-11-22T10:00:00",
            ])
            .args(["-append", "console=ttyS0 quiet panic=-1 psi=1", "-initrd", "initramfs", "-kernel"])
            .arg(kernel.join("vmlinuz"))
            .args(["-serial", "file:console", "-chardev", "stdio,id=shell,signal=off", "-serial", "chardev:shell"])
            .args(["-qmp", "unix:control,server=on,wait=off"])
            .args(hardware)
            .current_dir(files.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(File::create(files.path().join("qemu"))?)
            .spawn()
            .context("setpriv does not start")?;
        let (commands, stdout) = (qemu.stdin.take().context("piped")?, qemu.stdout.take().context("piped")?);
        let control = within(ANSWER, || Ok(UnixStream::connect(files.path().join("control"))?));
        let control = control.inspect_err(|_| end(&mut qemu));
        let control = control.with_context(|| format!("qemu does not start: {}", tail(&files.path().join("qemu"))))?;
        control.set_read_timeout(Some(ANSWER))?;
        let output = follow(stdout);
        let mut machine = Machine { qemu, commands, output, control: BufReader::new(control), files };
        machine.receive(BOOT).context("it does not boot")?;
        machine.control.read_line(&mut String::new())?;
        machine.control("qmp_capabilities", &json!({}))?;
        machine.run("nodevitals --version")?;
        Ok(machine)
    }

    /// Runs a script inside that must succeed, and returns what it printed.
    pub fn run(&mut self, script: &str) -> Result<String> {
        self.send(script)?;
        self.receive(SCRIPT).with_context(|| script.to_owned())
    }

    /// Suspends it to memory, and wakes it when its clock shows that so many seconds are over; then runs a script.
    pub fn sleep(&mut self, seconds: u32, then: &str) -> Result<String> {
        self.send(&format!("set -e; echo mem > /sys/power/state; {then}"))?;
        within(SCRIPT, || {
            let status = self.control("query-status", &json!({}))?;
            ensure!(status["status"] == "suspended", "it does not suspend: {status}");
            Ok(())
        })?;
        // They are read one after the other, and a minute may begin in between.
        let now = loop {
            let (minutes, rest) = (self.clock(MINUTES)?, self.clock(SECONDS)?);
            if self.clock(MINUTES)? == minutes {
                break minutes * 60 + rest;
            }
        };
        let end = now + seconds;
        ensure!(end < 3600, "the hour does not advance");
        for (register, value) in [(MINUTES, end / 60), (SECONDS, end % 60)] {
            self.monitor(&format!("o /b 0x70 {register}"))?;
            self.monitor(&format!("o /b 0x71 0x{value:02}"))?;
        }
        self.control("system_wakeup", &json!({}))?;
        self.receive(SCRIPT).context("it does not wake")
    }

    /// Stops it as a whole for so long: its clock goes on, as when whoever runs it has no time for it.
    pub fn stand_still(&self, time: Duration) -> Result<()> {
        let emulator = Pid::from_raw(self.qemu.id().try_into()?);
        kill(emulator, Signal::SIGSTOP)?;
        thread::sleep(time);
        Ok(kill(emulator, Signal::SIGCONT)?)
    }

    /// A register of its clock, which holds binary coded decimals.
    fn clock(&mut self, register: u32) -> Result<u32> {
        self.monitor(&format!("o /b 0x70 {register}"))?;
        let answer = self.monitor("i /b 0x71")?;
        let value = answer.rsplit("0x").next().and_then(|digits| digits.trim().parse().ok());
        value.with_context(|| format!("register {register} of the clock: {answer}"))
    }

    /// A command for people, as the emulator calls it.
    fn monitor(&mut self, line: &str) -> Result<String> {
        let answer = self.control("human-monitor-command", &json!({ "command-line": line }))?;
        Ok(answer.as_str().unwrap_or_default().to_owned())
    }

    /// The agent's page of findings.
    pub fn page(&mut self) -> Result<Value> {
        Ok(serde_json::from_str(&self.run("wget -qO- http://127.0.0.1:10580/findings")?)?)
    }

    /// Waits for what the verdict of the page says.
    pub fn eventually<T>(&mut self, what: &str, look: impl FnMut(&Value) -> Result<T>) -> Result<T> {
        self.eventually_in(SOON, what, look)
    }

    /// [`Machine::eventually`] for what takes longer.
    pub fn eventually_in<T>(
        &mut self,
        deadline: Duration,
        what: &str,
        mut look: impl FnMut(&Value) -> Result<T>,
    ) -> Result<T> {
        let seen = within(deadline, || look(&self.page()?["verdict"]));
        seen.with_context(|| format!("{what}: not within {deadline:?}; its log: {}", self.log()))
    }

    /// The end of the agent's log.
    pub fn log(&mut self) -> String {
        self.run("tail -n 30 /log").unwrap_or_default()
    }

    fn send(&mut self, script: &str) -> Result<()> {
        let text = format!("(\n{script}\n) </dev/null 2>&1; printf \"\\n%s\\036\" $?\n");
        self.commands.write_all(text.as_bytes()).context("it has ended")
    }

    /// What a script printed, to its end.
    fn receive(&mut self, deadline: Duration) -> Result<String> {
        let (end, mut text) = (Instant::now() + deadline, Vec::new());
        while text.last().is_none_or(|byte| char::from(*byte) != END) {
            match self.output.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(more) => text.extend(more),
                Err(error) => bail!(
                    "{error} after {}; the console: {}; qemu: {}",
                    String::from_utf8_lossy(&text),
                    tail(&self.files.path().join("console")),
                    tail(&self.files.path().join("qemu")),
                ),
            }
        }
        let text = String::from_utf8_lossy(&text);
        let (printed, status) = text.trim_end_matches(END).rsplit_once('\n').context("a status")?;
        ensure!(status == "0", "status {status}: {printed}");
        Ok(printed.to_owned())
    }

    /// A command of the emulator's own protocol. What it tells of unasked is left out.
    fn control(&mut self, command: &str, arguments: &Value) -> Result<Value> {
        writeln!(self.control.get_mut(), "{}", json!({ "execute": command, "arguments": arguments }))?;
        loop {
            let mut line = String::new();
            self.control.read_line(&mut line).with_context(|| format!("{command}: no answer"))?;
            let mut answer: Value = serde_json::from_str(&line).with_context(|| format!("{command}: {line}"))?;
            ensure!(answer.get("error").is_none(), "{command}: {answer}");
            if let Some(answer) = answer.get_mut("return") {
                return Ok(answer.take());
            }
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        end(&mut self.qemu);
    }
}

fn end(qemu: &mut Child) {
    // It may have ended by itself.
    qemu.kill().ok();
    qemu.wait().ok();
}

/// Takes in what comes, so that the machine never waits for it.
fn follow(mut from: ChildStdout) -> Receiver<Vec<u8>> {
    let (send, receive) = channel();
    thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(length @ 1..) = from.read(&mut buffer) {
            if send.send(buffer[..length].to_vec()).is_err() {
                break;
            }
        }
    });
    receive
}
