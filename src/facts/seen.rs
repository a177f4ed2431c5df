//! One look at one thing, and what happened to the looker.

use serde::Serialize;

/// The result of looking at one thing.
///
/// The three cases must never be confused: an empty list that was read is [`Seen::Yes`], a file that does not exist
/// is [`Seen::Absent`], and a permission that is missing is [`Seen::Unreadable`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Seen<T> {
    /// It was there and this is what it held.
    Yes(T),
    /// It was looked for and is not there.
    #[default]
    Absent,
    /// It could not be looked at.
    Unreadable(LookError),
}

impl<T> Seen<T> {
    /// The value, if it was seen.
    pub fn get(&self) -> Option<&T> {
        match self {
            Seen::Yes(value) => Some(value),
            Seen::Absent | Seen::Unreadable(_) => None,
        }
    }

    /// The error, if it could not be looked at.
    pub fn error(&self) -> Option<&LookError> {
        match self {
            Seen::Unreadable(error) => Some(error),
            Seen::Yes(_) | Seen::Absent => None,
        }
    }

    /// The same look at a part of what was seen.
    pub fn map<U>(self, part: impl FnOnce(T) -> U) -> Seen<U> {
        match self {
            Seen::Yes(value) => Seen::Yes(part(value)),
            Seen::Absent => Seen::Absent,
            Seen::Unreadable(error) => Seen::Unreadable(error),
        }
    }

    /// Something that has not been looked at yet.
    pub fn not_yet(what: &str) -> Self {
        Seen::Unreadable(LookError::new(what, Reason::NotYet, "not looked at yet"))
    }
}

impl<T> From<Result<T, LookError>> for Seen<T> {
    fn from(result: Result<T, LookError>) -> Self {
        match result {
            Ok(value) => Seen::Yes(value),
            Err(error) if error.reason == Reason::Missing => Seen::Absent,
            Err(error) => Seen::Unreadable(error),
        }
    }
}

/// Why something could not be looked at: names the thing, says what happened and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, thiserror::Error)]
#[serde(rename_all = "camelCase")]
#[error("{what}: {detail}")]
pub struct LookError {
    /// The file, socket, address or table that was looked at.
    pub what: String,
    /// The kind of failure.
    pub reason: Reason,
    /// What happened, in the words of whoever refused.
    pub detail: String,
}

/// The kinds of failure that checks tell apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Reason {
    /// Nothing was asked yet: the agent has just started.
    NotYet,
    /// It does not exist (`ENOENT`).
    Missing,
    /// No permission (`EACCES`, `EPERM`).
    Denied,
    /// Nobody listens there (`ECONNREFUSED`).
    Refused,
    /// It accepted, or did not, and has not answered before the deadline.
    TimedOut,
    /// It is there but is not the thing it should be: a directory, a FIFO, something too large.
    WrongKind,
    /// It answered something that cannot be understood.
    Malformed,
    /// This kernel or this runtime does not have it.
    Unsupported,
    /// Anything else.
    Failed,
}

impl LookError {
    /// An error about `what`.
    pub fn new(what: impl Into<String>, reason: Reason, detail: impl Into<String>) -> Self {
        LookError { what: what.into(), reason, detail: detail.into() }
    }

    /// An error about `what`, from the operating system.
    pub fn io(what: impl Into<String>, error: &std::io::Error) -> Self {
        use std::io::ErrorKind;
        let reason = match error.kind() {
            ErrorKind::NotFound => Reason::Missing,
            ErrorKind::PermissionDenied => Reason::Denied,
            ErrorKind::ConnectionRefused => Reason::Refused,
            ErrorKind::TimedOut => Reason::TimedOut,
            ErrorKind::InvalidData => Reason::Malformed,
            ErrorKind::Unsupported => Reason::Unsupported,
            _ => Reason::Failed,
        };
        LookError::new(what, reason, error.to_string())
    }

    /// An error about `what`, which did not answer within `seconds`.
    pub fn timed_out(what: impl Into<String>, seconds: f32) -> Self {
        LookError::new(what, Reason::TimedOut, format!("no answer within {seconds} s"))
    }
}
