//! Taking one piece: reading what could hang in a thread of its own, running what could not end with a deadline.

use std::ffi::OsStr;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::MetadataExt as _;
use std::process::Stdio;
use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::process::Command;
use tokio::time::timeout;

use super::pieces::{From, Piece};
use super::{DEADLINE, HostRoot};
use crate::agent::observe::Blocking;
use crate::bundle::{FACTS, MANIFEST, SUMMARY};
use crate::facts::{LookError, Reason, utc};

/// Where the agent of this node serves its pages, as it is deployed.
const AGENT: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), crate::agent::PORT);
/// Where the kubelet puts the logs of pods.
const POD_LOGS: &str = "/var/log/pods";
/// So many entries of a directory are listed.
const MOST_ENTRIES: usize = 500;
/// So many files of a directory, or logs of a container, are taken: two runs of two pods.
const MOST_FILES: usize = 32;
const MOST_LOGS: usize = 4;

/// What was read.
#[derive(Debug)]
pub(crate) struct Raw {
    pub(crate) bytes: Vec<u8>,
    /// What is missing.
    pub(crate) cut: Option<String>,
}

impl Raw {
    pub(super) fn whole(bytes: Vec<u8>) -> Self {
        Raw { bytes, cut: None }
    }

    /// What is left of something that may be longer than that.
    fn head(mut bytes: Vec<u8>, limit: u64) -> Self {
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let cut = (bytes.len() > limit).then(|| format!("after {limit} bytes"));
        bytes.truncate(limit);
        Raw { bytes, cut }
    }
}

/// Takes pieces.
#[derive(Debug)]
pub(super) struct Take {
    host: HostRoot,
    blocking: Blocking,
}

impl Take {
    pub(super) fn new(host: HostRoot) -> Self {
        Take { host, blocking: Blocking::default() }
    }

    /// The files that a piece has in the bundle, and what each is of.
    pub(super) async fn expand(&self, piece: &Piece) -> Result<Vec<(String, String)>, String> {
        match piece.from {
            From::Files(path) | From::Bundles(path) => {
                let bundles = matches!(piece.from, From::Bundles(_));
                let names = self.within(path, move |host| {
                    let mut names = entries(host, path)?;
                    if bundles {
                        let inside =
                            |folder: &String| [MANIFEST, SUMMARY, FACTS].map(|file| format!("{folder}/{file}"));
                        names = names.iter().flat_map(inside).collect();
                    }
                    names.retain(|name| is_file(host, &format!("{path}/{name}")));
                    names.truncate(MOST_FILES);
                    Ok(names)
                });
                let pair = |name: &String| (format!("{}/{name}", piece.name), format!("{path}/{name}"));
                Ok(names.await?.iter().map(pair).collect())
            }
            From::Log(pod, container) => {
                let logs = self.within(POD_LOGS, move |host| logs(host, pod, container)).await?;
                let name = |path: &String| {
                    let parts: Vec<&str> = path.rsplit('/').take(3).collect();
                    let pod = parts[2].split('_').nth(1).unwrap_or_default();
                    format!("{}/{pod}-{}", piece.name, parts[0])
                };
                Ok(logs.into_iter().map(|path| (name(&path), path)).collect())
            }
            From::File(_) | From::Listing(_) | From::Program(_) | From::Page(_) => {
                Ok(vec![(piece.name.to_owned(), piece.of())])
            }
        }
    }

    /// One of its files.
    pub(super) async fn take(&self, piece: &Piece, of: &str) -> Result<Raw, String> {
        let limit = piece.kib << 10;
        let path = of.to_owned();
        match piece.from {
            From::File(_) | From::Files(_) | From::Bundles(_) => {
                self.within(of, move |host| host.head(&path, limit + 1)).await.map(|bytes| Raw::head(bytes, limit))
            }
            From::Log(..) => {
                let mut bytes = self.within(of, move |host| host.tail(&path, limit, 1)).await?;
                let cut = (bytes.len() as u64 >= limit).then(|| format!("all but the last {limit} bytes"));
                if cut.is_some() {
                    // Of half a line nobody can tell what is secret.
                    let line = bytes.iter().position(|byte| *byte == b'\n').map_or(bytes.len(), |at| at + 1);
                    bytes.drain(..line);
                }
                Ok(Raw { bytes, cut })
            }
            From::Listing(_) => self.within(of, move |host| listing(host, &path)).await.map(Raw::whole),
            From::Program(argv) => run(argv, limit, DEADLINE).await,
            From::Page(path) => {
                let longest = usize::try_from(limit + 1).unwrap_or(usize::MAX);
                let answer = crate::http::get(AGENT, path, longest, DEADLINE).await.map_err(|error| error.detail)?;
                match answer.status {
                    200 => Ok(Raw::head(answer.body.into_bytes(), limit)),
                    status => Err(format!("HTTP {status}")),
                }
            }
        }
    }

    /// A call that can hang in the kernel.
    async fn within<T: Send + 'static>(
        &self,
        what: &str,
        call: impl FnOnce(&HostRoot) -> Result<T, LookError> + Send + 'static,
    ) -> Result<T, String> {
        let host = self.host.clone();
        self.blocking.run(what, DEADLINE, move || call(&host)).await.map_err(|error| match error.reason {
            Reason::Missing => "does not exist".to_owned(),
            _ => error.detail,
        })
    }
}

/// What a program prints, at most so many bytes of it, and what came of it where it does not end in time.
pub(crate) async fn run<S: AsRef<OsStr>>(argv: &[S], limit: u64, deadline: Duration) -> Result<Raw, String> {
    let name = argv[0].as_ref();
    let child = Command::new(name)
        .args(&argv[1..])
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn();
    let mut child = child.map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => format!("{} is not installed here", name.display()),
        _ => error.to_string(),
    })?;
    let (mut bytes, mut said) = (Vec::new(), Vec::new());
    let (output, errors) = (child.stdout.take(), child.stderr.take());
    let all = async {
        // A program whose output nobody takes any more ends by that; one whose complaints are not read stands still.
        let output = output.map(|output| output.take(limit + 1));
        tokio::join!(print(output, usize::MAX, &mut bytes), print(errors, 4096, &mut said));
        child.wait().await
    };
    let ended = timeout(deadline, all).await;
    let seconds = deadline.as_secs();
    if bytes.len() as u64 > limit {
        return Ok(Raw::head(bytes, limit));
    }
    match ended {
        Err(_) if bytes.is_empty() => Err(format!("has not ended within {seconds} s")),
        Err(_) => Ok(Raw { bytes, cut: Some(format!("what came after {seconds} s")) }),
        Ok(Err(error)) => Err(error.to_string()),
        Ok(Ok(status)) if !status.success() && bytes.is_empty() => {
            let said = String::from_utf8_lossy(&said);
            Err(format!("{status}: {}", said.lines().next().unwrap_or_default().trim()))
        }
        Ok(Ok(_)) => Ok(Raw::whole(bytes)),
    }
}

/// Keeps the beginning of what comes; the rest is read, so that nobody is held up by it, and thrown away.
async fn print(from: Option<impl AsyncRead + Unpin>, limit: usize, to: &mut Vec<u8>) {
    let Some(mut from) = from else { return };
    let mut piece = [0; 4096];
    // A read that is given up half way has taken nothing.
    while let Ok(length @ 1..) = from.read(&mut piece).await {
        let room = limit - to.len();
        to.extend_from_slice(&piece[..length.min(room)]);
    }
}

/// The names in a directory, in order.
fn entries(host: &HostRoot, path: &str) -> Result<Vec<String>, LookError> {
    let io = |error| LookError::io(path, &error);
    let mut names = Vec::new();
    for entry in std::fs::read_dir(host.path(path)).map_err(io)?.take(MOST_ENTRIES) {
        names.push(entry.map_err(io)?.file_name().to_string_lossy().into_owned());
    }
    names.sort_unstable();
    Ok(names)
}

fn is_file(host: &HostRoot, path: &str) -> bool {
    std::fs::metadata(host.path(path)).is_ok_and(|about| about.is_file())
}

/// The newest logs of a container: those of its last two runs, of each such pod.
fn logs(host: &HostRoot, pod: &str, container: &str) -> Result<Vec<String>, LookError> {
    let mut logs = Vec::new();
    for folder in entries(host, POD_LOGS)? {
        // NAMESPACE_NAME_UID
        if folder.split('_').nth(1).is_none_or(|name| !name.starts_with(pod)) {
            continue;
        }
        let path = format!("{POD_LOGS}/{folder}/{container}");
        let Ok(mut files) = entries(host, &path) else { continue };
        // RUN.log; those that were rotated have more behind it.
        let run = |name: &String| name.strip_suffix(".log").and_then(|run| run.parse::<u32>().ok());
        files.retain(|name| run(name).is_some());
        files.sort_unstable_by_key(run);
        logs.extend(files.iter().rev().take(2).map(|name| format!("{path}/{name}")));
    }
    logs.truncate(MOST_LOGS);
    if logs.is_empty() {
        return Err(LookError::new(POD_LOGS, Reason::Missing, "no such log"));
    }
    Ok(logs)
}

/// `ls -l` of a directory, without its need for a name of each user.
fn listing(host: &HostRoot, path: &str) -> Result<Vec<u8>, LookError> {
    let mut text = String::new();
    for name in entries(host, path)? {
        let place = host.path(path).join(&name);
        let line = match std::fs::symlink_metadata(&place) {
            Ok(about) => {
                let modified = about.modified().unwrap_or(SystemTime::UNIX_EPOCH);
                let modified = Timestamp::try_from(modified).unwrap_or(Timestamp::UNIX_EPOCH);
                let target = std::fs::read_link(&place).map(|to| format!(" -> {}", to.display())).unwrap_or_default();
                let (mode, uid, gid, size) = (about.mode(), about.uid(), about.gid(), about.size());
                format!("{mode:06o} {uid}:{gid} {size:>10} {} {name}{target}\n", utc(modified))
            }
            Err(error) => format!("{name}: {error}\n"),
        };
        text.push_str(&line);
    }
    Ok(text.into_bytes())
}
