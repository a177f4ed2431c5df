//! The state file: what was told and the journal of episodes, on the node's own disk, for the time in which the API server
//! cannot be told or has forgotten. The agent works without it.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::agent::observe::Blocking;
use crate::facts::{LookError, Past};
use crate::verdict::{Episodes, NodeCondition, Raised, WorkerState};

/// What this program writes. A newer one is set aside.
const SCHEMA: u32 = 1;
/// Its name in the directory.
const NAME: &str = "state.json";
/// Its name while it is written.
const NEW: &str = "state.json.new";
/// How the name of one ends that is set aside.
const DAMAGED: &str = "damaged";
/// Before the number of the schema that is not understood.
const OTHER: &str = "schema-";
/// Longest file that is read, in bytes: what is written is bounded far below.
const LONGEST: u64 = 1 << 20;
/// So many findings are kept.
const MOST_FINDINGS: usize = 256;
/// Longest wait for the disk.
const DEADLINE: Duration = Duration::from_secs(5);
/// After a failure it is tried again.
const AGAIN: Duration = Duration::from_secs(60);

/// Whether a file of ours in the directory has such a name.
pub(crate) fn is_state(name: &str) -> bool {
    let aside = |name: &str| {
        let number = name.strip_prefix(OTHER);
        name == DAMAGED || number.is_some_and(|it| !it.is_empty() && it.bytes().all(|byte| byte.is_ascii_digit()))
    };
    name == NAME || name == NEW || name.strip_prefix(NAME).and_then(|it| it.strip_prefix('.')).is_some_and(aside)
}

/// What is kept.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Kept {
    schema: u32,
    version: String,
    /// When it was written.
    pub(crate) saved_at: Timestamp,
    /// The boot that it is about.
    pub(crate) boot_id: String,
    /// Findings that count.
    pub(crate) findings: Vec<Raised>,
    /// Conditions.
    pub(crate) conditions: Vec<NodeCondition>,
    /// The worker's state.
    pub(crate) state: WorkerState,
    /// Since when it has that state.
    pub(crate) since: Timestamp,
    /// The journal.
    pub(crate) episodes: Episodes,
    /// What the next boot has to know of this one; versions before 0.2 do not write it.
    #[serde(default)]
    pub(crate) past: Past,
}

impl Kept {
    /// What to keep of a verdict.
    pub(crate) fn new(
        verdict: &crate::verdict::Verdict,
        conditions: Vec<NodeCondition>,
        boot_id: &str,
        episodes: Episodes,
        past: Past,
    ) -> Self {
        Kept {
            schema: SCHEMA,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            saved_at: verdict.at,
            boot_id: boot_id.to_owned(),
            findings: verdict.findings.iter().take(MOST_FINDINGS).cloned().collect(),
            conditions,
            state: verdict.state,
            since: verdict.since,
            episodes,
            past,
        }
    }

    /// Whether it says this already, whenever it was written.
    pub(crate) fn says(
        &self,
        verdict: &crate::verdict::Verdict,
        conditions: &[NodeCondition],
        boot_id: &str,
        episodes: &Episodes,
        past: Option<&Past>,
    ) -> bool {
        (self.state, self.since, self.boot_id.as_str()) == (verdict.state, verdict.since, boot_id)
            && self.findings.iter().eq(verdict.findings.iter().take(MOST_FINDINGS))
            && self.conditions == conditions
            && self.episodes == *episodes
            && past.is_none_or(|past| self.past == *past)
    }
}

/// Reads what an earlier process kept. What cannot be understood is set aside and said. None where there is nothing.
pub(crate) async fn load(directory: &Path) -> Option<Kept> {
    let owned = directory.to_owned();
    let read = move || Ok(read(&owned));
    Blocking::default().run("state file", DEADLINE, read).await.unwrap_or_else(|error| {
        tracing::warn!(%error, "the state file cannot be read");
        None
    })
}

fn read(directory: &Path) -> Option<Kept> {
    let path = directory.join(NAME);
    let text = match text(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
        Err(error) => {
            set_aside(&path, DAMAGED, &error.to_string());
            return None;
        }
    };
    match parse(&text) {
        Ok(kept) => Some(kept),
        Err((suffix, why)) => {
            set_aside(&path, &suffix, &why);
            None
        }
    }
}

/// A file of ours, as text: neither a FIFO, which would block, nor anything huge.
fn text(path: &Path) -> io::Result<String> {
    let about = fs::symlink_metadata(path)?;
    if !about.is_file() || about.len() > LONGEST {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("is not a file of at most {LONGEST} bytes")));
    }
    fs::read_to_string(path)
}

/// Understands the file; else says under which name to set it aside, and why.
fn parse(text: &str) -> Result<Kept, (String, String)> {
    #[derive(Deserialize)]
    struct Head {
        schema: u32,
    }
    let damaged = |error: serde_json::Error| (DAMAGED.to_owned(), error.to_string());
    let head: Head = serde_json::from_str(text).map_err(damaged)?;
    if head.schema != SCHEMA {
        let why = format!("it has schema {}, and this version writes {SCHEMA}", head.schema);
        return Err((format!("{OTHER}{}", head.schema), why));
    }
    serde_json::from_str(text).map_err(damaged)
}

fn set_aside(path: &Path, suffix: &str, why: &str) {
    let aside = path.with_extension(format!("json.{suffix}"));
    let renamed = fs::rename(path, &aside);
    let file = path.display().to_string();
    let aside = renamed.map_or_else(|error| format!("nowhere: {error}"), |()| aside.display().to_string());
    tracing::warn!(file, aside, why, "the state file is not understood and set aside; times come from the Node");
}

/// Starts to write what is sent there, if there is a directory for it.
pub(crate) fn start(directory: Option<PathBuf>) -> watch::Sender<Option<Kept>> {
    let (keep, kept) = watch::channel(None);
    if let Some(directory) = directory {
        tokio::spawn(self::keep(directory, kept));
    }
    keep
}

/// Writes what is to be kept, for ever: when it says something new, and again after a failure.
async fn keep(directory: PathBuf, mut kept: watch::Receiver<Option<Kept>>) {
    let blocking = Blocking::default();
    let mut failing = false;
    loop {
        let now = kept.borrow_and_update().clone();
        let mut again = Duration::MAX;
        if let Some(now) = now {
            let to = directory.clone();
            let path = to.join(NAME).display().to_string();
            let call = move || write(&to, &now).map_err(|error| LookError::io(path, &error));
            match blocking.run("state file", DEADLINE, call).await {
                Ok(()) if failing => tracing::info!("the state file is written again"),
                Ok(()) => {}
                Err(error) => {
                    again = AGAIN;
                    if !failing {
                        tracing::warn!(%error, "the state file cannot be written; the agent goes on without it");
                    }
                }
            }
            failing = again == AGAIN;
        }
        tokio::select! {
            changed = kept.changed() => {
                if changed.is_err() {
                    return;
                }
            }
            () = super::writer::sleep_long(again) => {}
        }
    }
}

/// Writes it beside the old one, lets the disk have it, and puts it in place: a crash leaves one of the two, whole.
fn write(directory: &Path, kept: &Kept) -> io::Result<()> {
    fs::create_dir_all(directory)?;
    let new = directory.join(NEW);
    let result = (|| {
        let mut file = File::create(&new)?;
        file.write_all(&serde_json::to_vec(kept)?)?;
        file.sync_all()?;
        fs::rename(&new, directory.join(NAME))?;
        File::open(directory)?.sync_all()
    })();
    if result.is_err() {
        // Half a file would take the room that is missing.
        fs::remove_file(&new).ok();
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verdict::Status;

    fn kept() -> Kept {
        let at = Timestamp::from_second(1_700_000_000).expect("valid");
        Kept {
            schema: SCHEMA,
            version: "0.1.0".into(),
            saved_at: at,
            boot_id: "b".into(),
            findings: Vec::new(),
            conditions: vec![NodeCondition {
                kind: "CNIProblem".into(),
                status: Status::True,
                reason: "CniConfigMissing".into(),
                message: "m".into(),
                last_transition_time: Some(at),
            }],
            state: WorkerState::Critical,
            since: at,
            episodes: Episodes::default(),
            past: Past::default(),
        }
    }

    #[test]
    fn what_is_written_is_read_back_and_replaces_what_was() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        assert_eq!(read(dir.path()), None);
        let nested = dir.path().join("nodevitals");
        write(&nested, &Kept { state: WorkerState::Normal, ..kept() }).expect("writes");
        write(&nested, &kept()).expect("writes again");
        assert_eq!(read(&nested), Some(kept()));
        let names: Vec<_> = fs::read_dir(&nested).expect("lists").map(|it| it.expect("entry").file_name()).collect();
        assert_eq!(names, [NAME]);
        assert!(is_state(NAME) && is_state(NEW) && !is_state("state.json.bak") && !is_state("state.jsonx"));
    }

    #[test]
    fn a_file_of_a_version_that_knew_nothing_of_boots_is_understood() {
        let mut old = serde_json::to_value(kept()).expect("plain");
        old.as_object_mut().expect("an object").remove("past");
        assert_eq!(parse(&old.to_string()), Ok(kept()));
    }

    #[test]
    fn what_is_not_understood_is_set_aside() {
        let newer = serde_json::to_string(&Kept { schema: 7, ..kept() }).expect("plain");
        let half = serde_json::to_string(&kept()).expect("plain")[..80].to_owned();
        for (text, aside) in
            [(newer, "state.json.schema-7"), (half, "state.json.damaged"), (String::new(), "state.json.damaged")]
        {
            let dir = tempfile::tempdir().expect("a temporary directory");
            fs::write(dir.path().join(NAME), &text).expect("writes");
            assert_eq!(read(dir.path()), None, "{text}");
            assert_eq!(fs::read_to_string(dir.path().join(aside)).expect("it is kept"), text);
            assert!(is_state(aside), "{aside} is erased with the rest");
            assert!(!dir.path().join(NAME).exists());
        }
    }

    #[test]
    fn a_fifo_and_a_directory_in_its_place_cost_nothing() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        nix::unistd::mkfifo(&dir.path().join(NAME), nix::sys::stat::Mode::S_IRWXU).expect("a FIFO");
        assert_eq!(read(dir.path()), None);
        fs::create_dir(dir.path().join(NAME)).expect("the FIFO was set aside");
        assert!(write(dir.path(), &kept()).is_err());
        assert!(!dir.path().join("state.json.new").exists(), "nothing is left behind");
    }

    #[tokio::test]
    async fn a_directory_that_cannot_be_written_costs_itself() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let blocked = dir.path().join("file");
        fs::write(&blocked, "no directory").expect("writes");
        let (tell, told) = watch::channel(Some(kept()));
        let task = tokio::spawn(keep(blocked.join("nodevitals"), told));
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert!(!task.is_finished());
        // Somebody repairs it, and there is something new to say.
        fs::remove_file(&blocked).expect("removes");
        tell.send(Some(kept())).expect("it listens");
        let path = blocked.join("nodevitals");
        for _ in 0..500 {
            if path.join(NAME).exists() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(load(&path).await, Some(kept()));
    }
}
