//! Where a console's output goes: through a bounded buffer to a thread that writes it.

use std::fs::File;
use std::io::{self, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::config::ConsoleOutput;
use crate::console::BUFFER_BYTES;
use crate::error::{Error, Result};

/// How long the last output may take to be written when the device goes.
const FAREWELL: Duration = Duration::from_secs(1);

/// The device's end of the buffer.
#[derive(Debug)]
pub(super) struct Output {
    shared: Arc<Shared>,
    /// Nobody takes the bytes.
    null: bool,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    /// Written when there is room for one who was refused.
    room: EventFd,
}

#[derive(Debug, Default)]
struct State {
    bytes: Vec<u8>,
    /// Somebody was refused for want of room.
    refused: bool,
    /// The device is gone.
    closed: bool,
    /// The thread has written everything after that.
    finished: bool,
}

impl Output {
    /// Opens the output and starts its thread.
    pub(super) fn open(output: &ConsoleOutput) -> Result<Self> {
        let target: Option<Box<dyn Write + Send>> = match output {
            ConsoleOutput::Null => None,
            ConsoleOutput::Stdio => Some(Box::new(io::stdout())),
            ConsoleOutput::File(path) => {
                let file = File::options().create(true).append(true).open(path);
                let fail = |source| Error::Host {
                    problem: format!("console output {}: {source}", path.display()),
                };
                Some(Box::new(file.map_err(fail)?))
            }
        };
        Self::to(target)
    }

    /// As `open`, to whatever takes the bytes.
    pub(super) fn to(target: Option<Box<dyn Write + Send>>) -> Result<Self> {
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            changed: Condvar::new(),
            room: EventFd::new(EFD_NONBLOCK).map_err(Error::io("eventfd"))?,
        });
        let null = target.is_none();
        if let Some(target) = target {
            let for_thread = Arc::clone(&shared);
            thread::Builder::new()
                .name("console-output".to_owned())
                .spawn(move || write_all(&for_thread, target))
                .map_err(Error::io("thread"))?;
        }
        Ok(Self { shared, null })
    }

    /// The event that tells of room after a refusal.
    pub(super) fn room(&self) -> &EventFd {
        &self.shared.room
    }

    /// Tells whether `len` bytes fit, as they do into an empty buffer of [`BUFFER_BYTES`]. If not, the event of
    /// `room` follows.
    pub(super) fn has_room(&self, len: usize) -> bool {
        let mut state = self.shared.lock();
        let fits = self.null || state.bytes.len() + len <= BUFFER_BYTES;
        state.refused |= !fits;
        fits
    }

    /// Adds bytes for which there is room.
    pub(super) fn put(&self, bytes: &[u8]) {
        if self.null {
            return;
        }
        self.shared.lock().bytes.extend_from_slice(bytes);
        self.shared.changed.notify_all();
    }
}

impl Drop for Output {
    /// Gives the last output a moment; a terminal that is not read is not waited for.
    fn drop(&mut self) {
        if self.null {
            return;
        }
        let mut state = self.shared.lock();
        state.closed = true;
        self.shared.changed.notify_all();
        let writing = |state: &mut State| !state.finished;
        drop(self.shared.changed.wait_timeout_while(state, FAREWELL, writing));
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes all bytes, waiting for some; `None` when there will be no more.
    fn take(&self) -> Option<Vec<u8>> {
        let idle = |state: &mut State| state.bytes.is_empty() && !state.closed;
        let mut state = self
            .changed
            .wait_while(self.lock(), idle)
            .unwrap_or_else(PoisonError::into_inner);
        let bytes = std::mem::take(&mut state.bytes);
        if std::mem::take(&mut state.refused) {
            // The one failure is a counter that is full: then the worker has been told.
            let _ = self.room.write(1);
        }
        (!bytes.is_empty()).then_some(bytes)
    }
}

/// The thread: writes what comes. A target that fails gets no more, and the guest goes on.
fn write_all(shared: &Shared, target: Box<dyn Write + Send>) {
    let mut target = Some(target);
    while let Some(bytes) = shared.take() {
        let outcome = target.as_mut().map_or(Ok(()), |target| {
            target.write_all(&bytes).and_then(|()| target.flush())
        });
        if let Err(error) = outcome {
            tracing::warn!(%error, "console output is lost from now on");
            target = None;
        }
    }
    shared.lock().finished = true;
    shared.changed.notify_all();
}
