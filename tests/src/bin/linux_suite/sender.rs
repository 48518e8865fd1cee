//! The host's end of the stream that guests receive by vsock.

use std::io::Write;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use linux_guest::stream::{PORT, fill};
use vsock::{VMADDR_CID_ANY, VsockListener};

const PIECE_BYTES: usize = 4 << 10;
const BREATH: Duration = Duration::from_millis(40);

/// Sends the stream to whoever connects, until it is dropped.
#[derive(Debug)]
pub struct Sender {
    over: Arc<AtomicBool>,
}

impl Sender {
    /// Serves the guests of one machine, whose vsock device has the socket `uds`.
    pub fn on_socket(uds: &Path, seed: u64) -> Result<Self> {
        let path = PathBuf::from(format!("{}_{PORT}", uds.display()));
        let listener =
            UnixListener::bind(&path).with_context(|| format!("cannot listen on {}", path.display()))?;
        Ok(Self::serve(
            move || listener.accept().map(|(stream, _)| stream),
            seed,
        ))
    }

    /// Serves the guests of every machine whose vsock device is the kernel's.
    pub fn on_vsock(seed: u64) -> Result<Self> {
        let listener =
            VsockListener::bind_with_cid_port(VMADDR_CID_ANY, PORT).context("cannot listen by vsock")?;
        Ok(Self::serve(
            move || listener.accept().map(|(stream, _)| stream),
            seed,
        ))
    }

    fn serve<S: Write + Send + 'static>(
        accept: impl Fn() -> std::io::Result<S> + Send + 'static,
        seed: u64,
    ) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let ours = Arc::clone(&over);
        thread::spawn(move || {
            while let Ok(stream) = accept() {
                let over = Arc::clone(&ours);
                thread::spawn(move || send(stream, seed, &over));
            }
        });
        Self { over }
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
    }
}

/// Sends the stream from its beginning, until the connection breaks.
fn send(mut stream: impl Write, seed: u64, over: &AtomicBool) {
    let mut piece = vec![0; PIECE_BYTES];
    let mut offset = 0;
    while !over.load(Ordering::Relaxed) {
        fill(seed, offset, &mut piece);
        if stream.write_all(&piece).is_err() {
            return;
        }
        offset += piece.len() as u64;
        thread::sleep(BREATH);
    }
}
