//! The health ports as they were recorded: an answer, an open port behind which nobody reads, or none.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result, bail};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::runtime::Handle;
use tokio::task::JoinHandle;

use super::files::Recording;

/// Ports and the components behind them, whose pages are the recorded `http/COMPONENT-PAGE.txt`.
pub const PORTS: [(u16, &str); 3] = [(10248, "kubelet-"), (10256, "kube-proxy-"), (9099, "felix-")];

/// A listener, and who answers on it, if somebody does. Both end with this value.
#[derive(Default)]
pub struct Ports {
    hung: Option<TcpListener>,
    answering: Option<JoinHandle<()>>,
    pages: Arc<Mutex<Pages>>,
}

/// Pages by path: status and body.
pub type Pages = BTreeMap<String, (u16, String)>;

impl Ports {
    /// Opens a port as it was recorded on loopback, where this thread is.
    pub fn open(runtime: &Handle, port: u16, component: &str, recording: &Recording) -> Result<Self> {
        let mut ports = Ports::default();
        let (mut pages, mut hangs) = (Pages::new(), false);
        for (name, text) in recording.matching(&format!("http/{component}")) {
            let (head, body) = text.split_once('\n').context("a status line")?;
            let status: u16 = head.split([' ', ',']).nth(1).context("a status")?.parse()?;
            match status {
                0 if head.contains("exit 28") => hangs = true,
                0 if head.contains("exit 7") => {}
                0 => bail!("{name}: {head}"),
                _ => {
                    let page = name.trim_end_matches(".txt").rsplit('-').next().context("a page")?;
                    pages.insert(format!("/{page}"), (status, body.to_owned()));
                }
            }
        }
        match (hangs, pages.is_empty()) {
            (true, _) => ports.hung = Some(TcpListener::bind(("127.0.0.1", port))?),
            (false, true) => {}
            (false, false) => ports.serve(runtime, TcpListener::bind(("127.0.0.1", port))?, pages)?,
        }
        Ok(ports)
    }

    /// Answers every question on a listener with a page, or 404.
    pub fn serve(&mut self, runtime: &Handle, listener: TcpListener, pages: Pages) -> Result<()> {
        listener.set_nonblocking(true)?;
        let _guard = runtime.enter();
        let listener = tokio::net::TcpListener::from_std(listener)?;
        self.answer(pages);
        let pages = Arc::clone(&self.pages);
        self.answering = Some(runtime.spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let pages = Arc::clone(&pages);
                tokio::spawn(async move {
                    let mut question = vec![0; 4096];
                    let length = stream.read(&mut question).await.unwrap_or(0);
                    let question = String::from_utf8_lossy(&question[..length]);
                    // What an agent tells of its node with its question changes no answer.
                    let path = question.split([' ', '&']).nth(1).unwrap_or_default();
                    let page = pages.lock().unwrap_or_else(PoisonError::into_inner).get(path).cloned();
                    let (status, body) = page.unwrap_or((404, String::new()));
                    let head =
                        format!("HTTP/1.1 {status} X\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
                    // The one who asks may have gone.
                    stream.write_all((head + &body).as_bytes()).await.ok();
                });
            }
        }));
        Ok(())
    }

    /// From now on these are the pages.
    pub fn answer(&self, pages: Pages) {
        *self.pages.lock().unwrap_or_else(PoisonError::into_inner) = pages;
    }
}

impl Drop for Ports {
    fn drop(&mut self) {
        if let Some(task) = &self.answering {
            task.abort();
        }
        self.hung = None;
    }
}
