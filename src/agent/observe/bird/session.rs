//! One read-only session at a control socket.

use std::path::Path;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::super::cri::connection;
use super::wire::{self, Each, Framer};
use crate::facts::{LookError, Reason};

/// A local socket connects at once or not at all.
const CONNECT: Duration = Duration::from_secs(1);
/// Calico's own deadline for BIRD (facts.md C.4).
const ANSWER: Duration = Duration::from_secs(2);

/// A session, kept from look to look.
#[derive(Debug)]
pub(super) struct Session {
    socket: &'static str,
    stream: BufReader<UnixStream>,
    framer: Framer,
    /// Answers that will come, but for which nobody waits any more. A hung BIRD is not asked again: the old question
    /// stands, and the queue of its socket, which has room for ten, is left to others.
    owed: u32,
    version: String,
}

impl Session {
    /// Connects to the socket that this process sees at `path`. The greeting and the answer to `restrict`, which makes
    /// the session read-only, are waited for with the first question.
    pub(super) async fn open(socket: &'static str, path: &Path) -> Result<Self, LookError> {
        connection::check(socket, path)?;
        let mut stream = match timeout(CONNECT, connection::connect(path)).await {
            Ok(Ok(stream)) => BufReader::new(stream),
            Ok(Err(error)) => return Err(connection::refused(socket, &error)),
            Err(_) => return Err(LookError::timed_out(socket, CONNECT.as_secs_f32())),
        };
        stream.write_all(b"restrict\n").await.map_err(|error| LookError::io(socket, &error))?;
        Ok(Session { socket, stream, framer: Framer::default(), owed: 2, version: String::new() })
    }

    /// The version in the greeting.
    pub(super) fn version(&self) -> &str {
        &self.version
    }

    /// Asks a question; `each` gets code and text of every line of the answer.
    pub(super) async fn ask(&mut self, question: &str, each: &mut Each<'_>) -> Result<(), LookError> {
        if let Ok(result) = timeout(ANSWER, self.exchange(question, each)).await {
            return result;
        }
        let seconds = ANSWER.as_secs();
        let detail = format!("accepts connections but has not answered `{question}` within {seconds} s");
        Err(LookError::new(self.socket, Reason::TimedOut, detail))
    }

    async fn exchange(&mut self, question: &str, each: &mut Each<'_>) -> Result<(), LookError> {
        while self.owed > 0 {
            let mut greeting = None;
            self.answer(&mut |code, text| {
                if code == 1 {
                    greeting = wire::version(text).map(str::to_owned);
                }
            })
            .await?;
            self.version = greeting.unwrap_or(std::mem::take(&mut self.version));
            self.owed -= 1;
        }
        let line = format!("{question}\n");
        self.stream.write_all(line.as_bytes()).await.map_err(|error| LookError::io(self.socket, &error))?;
        self.owed = 1;
        let mut refusal = None;
        self.answer(&mut |code, text| {
            if code >= 8000 {
                refusal = Some(text.to_owned());
            } else {
                each(code, text);
            }
        })
        .await?;
        self.owed = 0;
        match refusal {
            None => Ok(()),
            Some(text) => Err(LookError::new(self.socket, Reason::Unsupported, format!("`{question}`: {text}"))),
        }
    }

    /// Reads to the end of one answer. What was read stays read when the caller stops waiting.
    async fn answer(&mut self, each: &mut Each<'_>) -> Result<(), LookError> {
        loop {
            let bytes = self.stream.fill_buf().await.map_err(|error| LookError::io(self.socket, &error))?;
            if bytes.is_empty() {
                return Err(LookError::new(self.socket, Reason::Failed, "closed the connection"));
            }
            let (taken, end) = self
                .framer
                .feed(bytes, each)
                .map_err(|wire::Malformed(why)| LookError::new(self.socket, Reason::Malformed, why))?;
            self.stream.consume(taken);
            if end {
                return Ok(());
            }
        }
    }
}
