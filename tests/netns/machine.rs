//! A machine under test: a network namespace and a root directory that looks like a worker's.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tempfile::TempDir;

use crate::support::netns::NetNs;
use crate::support::shell;

/// A machine under test.
pub struct Machine {
    net: NetNs,
    root: TempDir,
}

impl Machine {
    /// A machine that has nothing to do with Kubernetes: no link but loopback, an empty root.
    pub fn plain() -> Result<Self> {
        let machine = Machine { net: NetNs::new()?, root: tempfile::tempdir()? };
        for directory in ["proc", "etc", "var/log", "run"] {
            std::fs::create_dir_all(machine.path(directory))?;
        }
        machine.run(&["ip", "link", "set", "lo", "up"])?;
        machine.run(&["mount", "--bind", machine.root()?, machine.root()?])?;
        machine.run(&["mount", "--rbind", "/proc", &machine.place("proc")])?;
        Ok(machine)
    }

    /// A worker by its files: a kubelet's configuration, and an uplink with a default route.
    pub fn worker() -> Result<Self> {
        let machine = Machine::plain()?;
        machine.write("var/lib/kubelet/config.yaml", "kind: KubeletConfiguration\nhealthzPort: 0\n")?;
        machine.run(&["ip", "link", "add", "uplink", "type", "veth", "peer", "name", "far"])?;
        machine.run(&["ip", "address", "add", "192.0.2.5/24", "dev", "uplink"])?;
        machine.run(&["ip", "link", "set", "uplink", "up"])?;
        machine.run(&["ip", "link", "set", "far", "up"])?;
        machine.run(&["ip", "route", "add", "default", "via", "192.0.2.1"])?;
        Ok(machine)
    }

    /// Its network namespace.
    pub fn net(&self) -> &NetNs {
        &self.net
    }

    /// The place of a file of its root.
    pub fn path(&self, file: &str) -> PathBuf {
        self.root.path().join(file)
    }

    /// The same, as text.
    pub fn place(&self, file: &str) -> String {
        self.path(file).display().to_string()
    }

    fn root(&self) -> Result<&str> {
        self.root.path().to_str().context("a path in UTF-8")
    }

    /// Writes a file of its root.
    pub fn write(&self, file: &str, text: impl AsRef<[u8]>) -> Result<()> {
        let path = self.path(file);
        std::fs::create_dir_all(path.parent().context("a parent")?)?;
        Ok(std::fs::write(path, text)?)
    }

    /// Runs a command in its namespaces.
    pub fn run(&self, argv: &[&str]) -> Result<String> {
        self.net.exec(argv)
    }

    /// Runs a command in its namespaces with something on standard input.
    pub fn feed(&self, argv: &[&str], input: &str) -> Result<String> {
        let mut command = self.net.command(argv[0]);
        shell::read_with_input(command.args(&argv[1..]), input)
    }

    /// `nodevitals` with these arguments, in its namespaces.
    pub fn nodevitals(&self, arguments: &[&str]) -> Result<Output> {
        Ok(self.net.command(program()).args(arguments).output()?)
    }

    /// `nodevitals check -o json` on it.
    pub fn check(&self) -> Result<Checked> {
        self.check_with(&[])
    }

    /// The same, with more arguments.
    pub fn check_with(&self, more: &[&str]) -> Result<Checked> {
        let root = ["check", "-o", "json", "--host-root", self.root()?];
        self.checked(&[&root[..], more].concat())
    }

    /// `nodevitals check -o json` on the machine that runs the tests, as it looks from inside the namespaces.
    pub fn check_itself(&self) -> Result<Checked> {
        self.checked(&["check", "-o", "json"])
    }

    fn checked(&self, arguments: &[&str]) -> Result<Checked> {
        let output = self.nodevitals(arguments)?;
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(errors.is_empty(), "nodevitals check says: {errors}");
        let json = serde_json::from_slice(&output.stdout).with_context(|| format!("not JSON: {output:?}"))?;
        Ok(Checked { json, status: output.status.code() })
    }
}

/// The answer of `nodevitals check`.
#[derive(Debug)]
pub struct Checked {
    /// Everything it said.
    pub json: Value,
    /// Its exit status.
    pub status: Option<i32>,
}

impl Checked {
    /// The codes of its findings, worst first.
    pub fn codes(&self) -> Vec<&str> {
        let findings = self.json["verdict"]["findings"].as_array().map_or(&[][..], Vec::as_slice);
        findings.iter().filter_map(|finding| finding["code"].as_str()).collect()
    }

    /// The finding with this code.
    pub fn finding(&self, code: &str) -> Result<&Value> {
        let findings = self.json["verdict"]["findings"].as_array().context("findings")?;
        let found = findings.iter().find(|finding| finding["code"] == code);
        found.with_context(|| {
            format!("no finding {code} among {:?}; unknown: {}", self.codes(), self.json["verdict"]["unknown"])
        })
    }

    /// The codes of its findings that contain this text.
    pub fn codes_like(&self, text: &str) -> Vec<&str> {
        self.codes().into_iter().filter(|code| code.contains(text)).collect()
    }

    /// Status and reason of a condition.
    pub fn condition(&self, kind: &str) -> (&str, &str) {
        let conditions = self.json["verdict"]["conditions"].as_array().map_or(&[][..], Vec::as_slice);
        let condition = conditions.iter().find(|condition| condition["kind"] == kind);
        condition.map_or(("", ""), |it| (it["status"].as_str().unwrap_or(""), it["reason"].as_str().unwrap_or("")))
    }

    /// Why checks could not look: pairs of code and reason.
    pub fn unknown(&self) -> Vec<(&str, &str)> {
        let unknown = self.json["verdict"]["unknown"].as_array().map_or(&[][..], Vec::as_slice);
        unknown.iter().filter_map(|pair| Some((pair[0].as_str()?, pair[1].as_str()?))).collect()
    }
}

/// The program under test: the release binary when the test script built one.
pub fn program() -> PathBuf {
    std::env::var_os("NODEVITALS_BIN").map_or_else(|| PathBuf::from(env!("CARGO_BIN_EXE_nodevitals")), PathBuf::from)
}

/// A file of the recordings. The match `nfacct` of one rule is left out: it counts, and needs an accounting object that
/// no recording holds.
pub fn recording(name: &str) -> Result<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/recordings").join(name);
    let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let counter = " -m nfacct --nfacct-name ";
    let line = |line: &str| match line.split_once(counter) {
        Some((before, after)) => {
            format!("{before} {}\n", after.trim_start().split_once(' ').map_or("", |(_, rest)| rest))
        }
        None => format!("{line}\n"),
    };
    Ok(text.lines().map(line).collect())
}

/// A command on this machine itself.
pub fn here(argv: &[&str]) -> Result<String> {
    shell::read(Command::new(argv[0]).args(&argv[1..]))
}
