//! A way to the API server on which what it tells can be held back. An API server on a small machine takes many seconds to
//! change a thousand objects; what it told meanwhile is let go at once, as one on a large machine would tell it.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::Scope;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::support::control_plane::{ControlPlane, URL};

/// An address of the API server that nobody else listens on.
const AT: &str = "10.77.0.1:16443";
/// More than this, in bytes, is told only where objects are listed and watched: anything else must be answered in time.
const LISTED: usize = 256 << 10;
/// How late it may be let go.
const LATE: Duration = Duration::from_millis(5);

/// The way, while it is open.
pub struct Relay {
    listener: TcpListener,
    held: AtomicBool,
    over: AtomicBool,
    /// Bytes that were held back.
    kept: AtomicUsize,
}

impl Relay {
    pub fn new(control_plane: &ControlPlane) -> Result<Self> {
        let listener = control_plane.host().run_in_network(|| TcpListener::bind(AT))?.context(AT)?;
        let (held, over, kept) = (AtomicBool::new(false), AtomicBool::new(false), AtomicUsize::new(0));
        Ok(Relay { listener, held, over, kept })
    }

    /// The administrator's kubeconfig for this way.
    pub fn kubeconfig(control_plane: &ControlPlane) -> Result<PathBuf> {
        let mut kubeconfig: Value = serde_json::from_str(&std::fs::read_to_string(control_plane.admin_kubeconfig()?)?)?;
        kubeconfig["clusters"][0]["cluster"]["server"] = format!("https://{AT}").into();
        let file = control_plane.workspace().directory().join("relay.kubeconfig");
        std::fs::write(&file, kubeconfig.to_string())?;
        Ok(file)
    }

    /// Lets everybody through until it is closed.
    pub fn run<'a>(&'a self, scope: &'a Scope<'a, '_>, control_plane: &'a ControlPlane) {
        let server = URL.trim_start_matches("https://");
        scope.spawn(move || {
            for client in self.listener.incoming().map_while(Result::ok) {
                if self.over.load(Ordering::Relaxed) {
                    return;
                }
                let there = control_plane.host().run_in_network(|| TcpStream::connect(server));
                // Who cannot be let through sees its connection closed, and tries again.
                let Ok(Ok(there)) = there else { continue };
                let (Ok(to), Ok(back)) = (there.try_clone(), client.try_clone()) else { continue };
                scope.spawn(move || pass(client, to));
                scope.spawn(move || self.tell(there, back));
            }
        });
    }

    /// From now on what is told of lists and watches is kept.
    pub fn hold(&self) {
        self.kept.store(0, Ordering::Relaxed);
        self.held.store(true, Ordering::Relaxed);
    }

    /// Lets go what was kept, and answers how many bytes of it there are.
    pub fn release(&self) -> usize {
        self.held.store(false, Ordering::Relaxed);
        self.kept.load(Ordering::Relaxed)
    }

    /// Those who are there stay until they go.
    pub fn close(&self, control_plane: &ControlPlane) -> Result<()> {
        self.over.store(true, Ordering::Relaxed);
        control_plane.host().run_in_network(|| TcpStream::connect(AT))?.context("it listens")?;
        Ok(())
    }

    fn tell(&self, mut from: TcpStream, mut to: TcpStream) {
        let (mut told, mut kept, mut some) = (0, Vec::new(), vec![0; 64 << 10]);
        loop {
            let holds = told > LISTED && self.held.load(Ordering::Relaxed);
            if !holds && !kept.is_empty() {
                if to.write_all(&kept).is_err() {
                    break;
                }
                kept = Vec::new();
            }
            from.set_read_timeout(holds.then_some(LATE)).expect("not zero");
            match from.read(&mut some) {
                Ok(0) => break,
                Ok(length) => {
                    told += length;
                    kept.extend_from_slice(&some[..length]);
                    if holds {
                        self.kept.fetch_add(length, Ordering::Relaxed);
                    }
                }
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                Err(_) => break,
            }
        }
        // Either end may have gone already.
        to.shutdown(Shutdown::Both).ok();
        from.shutdown(Shutdown::Both).ok();
    }
}

/// What is asked is passed on until the asker goes.
fn pass(mut from: TcpStream, mut to: TcpStream) {
    std::io::copy(&mut from, &mut to).ok();
    to.shutdown(Shutdown::Both).ok();
}
