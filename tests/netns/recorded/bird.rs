//! BIRD's control socket as it was recorded: it answers, hangs, or nobody listens any more.
//!
//! The recordings hold what birdc printed; the reply codes, which birdc takes off, are put on again as
//! `cli_printf` of BIRD 1.6 does: a line of the code before it begins with a blank instead.

use std::collections::BTreeMap;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::runtime::Handle;
use tokio::task::{JoinHandle, JoinSet};

use super::files::Recording;

/// A control socket. What is behind it ends with this value; the file stays, as that of a BIRD that was killed does.
pub enum Bird {
    Answers(JoinHandle<()>),
    /// A stopped process: the kernel still accepts.
    Hangs {
        _listener: UnixListener,
    },
    Refuses,
}

impl Bird {
    /// Puts the recorded BIRD behind the socket.
    pub fn start(runtime: &Handle, socket: &Path, recording: &Recording) -> Result<Self> {
        if socket.exists() {
            std::fs::remove_file(socket)?;
        }
        let listener = UnixListener::bind(socket)?;
        let Some(protocols) = recording.get("bird-protocols.txt") else {
            let why = recording.text("bird-protocols.txt.stderr")?;
            return match why {
                _ if why.contains("exit status 124") => Ok(Bird::Hangs { _listener: listener }),
                _ if why.contains("Connection refused") => Ok(Bird::Refuses),
                _ => bail!("what was BIRD's state? {why}"),
            };
        };
        let greeting = protocols.lines().next().context("a greeting")?.to_owned();
        let mut answers = BTreeMap::from([
            ("restrict", "0016 Access restricted\n".to_owned()),
            ("show status", status(recording.text("bird-status.txt")?)),
            ("show route", coded(lines(recording.text("bird-route.txt")?).map(|line| (1007, line))) + "0000 \n"),
        ]);
        let all: Vec<(u16, &str)> = lines(protocols).enumerate().map(|(at, line)| (code(at, line), line)).collect();
        let rows = all.iter().copied().filter(|(code, _)| *code != 1006);
        answers.insert("show protocols", coded(rows) + "0000 \n");
        answers.insert("show protocols all", coded(all.iter().copied()) + "0000 \n");
        let served = Arc::new((greeting, answers));
        listener.set_nonblocking(true)?;
        let _guard = runtime.enter();
        let listener = tokio::net::UnixListener::from_std(listener)?;
        Ok(Bird::Answers(runtime.spawn(async move {
            // Those who are connected lose it together with the rest.
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(serve(stream, Arc::clone(&served)));
            }
        })))
    }
}

impl Drop for Bird {
    fn drop(&mut self) {
        if let Bird::Answers(task) = self {
            task.abort();
        }
    }
}

async fn serve(stream: UnixStream, served: Arc<(String, BTreeMap<&'static str, String>)>) {
    let (greeting, answers) = &*served;
    let (read, mut write) = stream.into_split();
    // The one who asks may go at any time.
    write.write_all(format!("0001 {greeting}\n").as_bytes()).await.ok();
    let mut questions = BufReader::new(read).lines();
    while let Ok(Some(question)) = questions.next_line().await {
        let known = answers.get(question.trim().to_lowercase().as_str());
        let answer = known.map_or("9001 syntax error, unexpected CF_SYM_UNDEFINED\n", String::as_str);
        if write.write_all(answer.as_bytes()).await.is_err() {
            return;
        }
    }
}

/// What follows the greeting.
fn lines(text: &str) -> impl Iterator<Item = &str> {
    text.lines().skip(1)
}

/// The code of a line of `show protocols all`: heading, row of a protocol, or detail.
fn code(at: usize, line: &str) -> u16 {
    match at {
        0 => 2002,
        _ if line.is_empty() || line.starts_with(' ') => 1006,
        _ => 1002,
    }
}

fn status(text: &str) -> String {
    let code = |at, line: &str| match at {
        0 => 1000,
        _ if line.contains("raceful restart") || line.contains("Wait") => 24,
        _ => 1011,
    };
    let (last, before): (Vec<_>, Vec<_>) = lines(text).partition(|line| line.starts_with("Daemon is "));
    coded(before.iter().enumerate().map(|(at, line)| (code(at, line), *line))) + &format!("0013 {}\n", last.concat())
}

fn coded<'a>(lines: impl Iterator<Item = (u16, &'a str)>) -> String {
    let mut last = 0;
    lines
        .map(|(code, line)| {
            let again = std::mem::replace(&mut last, code) == code;
            if again { format!(" {line}\n") } else { format!("{code:04}-{line}\n") }
        })
        .collect()
}

#[test]
fn codes_are_put_on_as_bird_does() {
    let text =
        "BIRD 1.6.8 ready.\nBIRD 1.6.8\nRouter ID is 1.2.3.4\nCurrent server time is now\nDaemon is up and running\n";
    let coded =
        "1000-BIRD 1.6.8\n1011-Router ID is 1.2.3.4\n Current server time is now\n0013 Daemon is up and running\n";
    assert_eq!(status(text), coded);
}
