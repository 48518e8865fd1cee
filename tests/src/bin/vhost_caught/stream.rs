//! The client on the host that streams numbers to the guest: 0, 1, 2 and so on, eight bytes each.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use vsock::VsockStream;

use crate::Result;

/// Numbers in one write.
const BATCH: u64 = 8192;

/// A thread that streams until it is stopped.
#[derive(Debug)]
pub struct Client {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<std::io::Result<()>>,
}

impl Client {
    /// Connects in the background and begins.
    pub fn start(cid: u32, port: u32) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || stream(cid, port, &stopped));
        Client { stop, thread }
    }

    /// Ends the stream.
    pub fn stop(self) -> Result<()> {
        self.stop.store(true, Ordering::Release);
        Ok(self.thread.join().map_err(|_| "the client panicked")??)
    }
}

fn stream(cid: u32, port: u32, stop: &AtomicBool) -> std::io::Result<()> {
    let mut stream = connect(cid, port, stop)?;
    // A client that is not read any more still sees that it is to end.
    stream.set_write_timeout(Some(Duration::from_millis(200)))?;
    let mut next = 0;
    while !stop.load(Ordering::Acquire) {
        let batch: Vec<u8> = (next..next + BATCH).flat_map(u64::to_le_bytes).collect();
        next += BATCH;
        let mut rest = batch.as_slice();
        while !rest.is_empty() && !stop.load(Ordering::Acquire) {
            match stream.write(rest) {
                Ok(len) => rest = rest.get(len..).unwrap_or_default(),
                Err(error) if is_timeout(&error) => {}
                Err(error) if stop.load(Ordering::Acquire) => {
                    eprintln!("the client was stopped: {error}");
                }
                Err(error) => return Err(error),
            }
        }
    }
    Ok(())
}

/// Tries until the device answers; the kernel gives up after two seconds each time.
fn connect(cid: u32, port: u32, stop: &AtomicBool) -> std::io::Result<VsockStream> {
    loop {
        match VsockStream::connect_with_cid_port(cid, port) {
            Err(error) if is_timeout(&error) && !stop.load(Ordering::Acquire) => {}
            other => return other,
        }
    }
}

fn is_timeout(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{Interrupted, TimedOut, WouldBlock};
    matches!(error.kind(), Interrupted | TimedOut | WouldBlock)
}
