//! A stream from the host by vsock, checked byte by byte and kept in a ring in memory.
//!
//! The ring is checked again and again: it is memory that the host's kernel or the machine writes, not this guest.
//! A connection that breaks, as all do in a restored copy, is made anew, and the sequence begins again.

use std::io::Read;
use std::sync::atomic::Ordering::Relaxed;
use std::thread;
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use linux_guest::stream::{PORT, first_difference};
use vsock::{VMADDR_CID_HOST, VsockStream};

use super::health::Health;

const RING_BYTES: usize = 1 << 20;
const PIECE_BYTES: usize = 16 << 10;
const RETRY: Duration = Duration::from_millis(500);
/// A host that is silent for so long is connected to anew.
const SILENCE: Duration = Duration::from_secs(600);

/// Receives without end.
pub fn receive(seed: u64, health: &Health) -> Result<()> {
    loop {
        let Ok(stream) = VsockStream::connect_with_cid_port(VMADDR_CID_HOST, PORT) else {
            thread::sleep(RETRY);
            continue;
        };
        stream.set_read_timeout(Some(SILENCE))?;
        health.stream_connections.fetch_add(1, Relaxed);
        drain(stream, seed, health)?;
        thread::sleep(RETRY);
    }
}

/// Reads one connection until it breaks; a wrong byte is an error.
fn drain(mut stream: VsockStream, seed: u64, health: &Health) -> Result<()> {
    let mut ring = vec![0; RING_BYTES];
    let (mut received, mut at) = (0, 0);
    loop {
        let count = match stream.read(&mut ring[at..at + PIECE_BYTES]) {
            Ok(0) | Err(_) => return check_ring(&ring, received, at, seed),
            Ok(count) => count,
        };
        if let Some(place) = first_difference(seed, received, &ring[at..at + count]) {
            bail!("byte {place} of the stream is wrong");
        }
        received += count as u64;
        at += count;
        health.stream_bytes.fetch_add(count as u64, Relaxed);
        if at + PIECE_BYTES > RING_BYTES {
            check_ring(&ring, received, at, seed)?;
            at = 0;
        }
    }
}

/// Checks what was received since the ring began anew; it may have changed since it was right.
fn check_ring(ring: &[u8], received: u64, at: usize, seed: u64) -> Result<()> {
    let wrong = first_difference(seed, received - at as u64, &ring[..at]);
    ensure!(
        wrong.is_none(),
        "byte {wrong:?} of the stream has changed in memory"
    );
    Ok(())
}
