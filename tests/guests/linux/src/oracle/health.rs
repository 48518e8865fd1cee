//! What all loads write down: counters of what went right, words for what went wrong.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};

use linux_guest::status::Status;

/// Messages that are kept; of more, only the number is.
const MESSAGES: usize = 10;

/// Counters and errors of all loads. Each counter stands alone: none orders anything else.
#[derive(Debug, Default)]
pub struct Health {
    errors: AtomicU64,
    messages: Mutex<Vec<String>>,
    pub page_writes: AtomicU64,
    pub passes: AtomicU64,
    pub disk_completed: AtomicU64,
    pub disk_flushed: AtomicU64,
    pub tail_completed: AtomicU64,
    pub file_cycles: AtomicU64,
    pub timer_ticks: AtomicU64,
    pub timer_late_us: AtomicU64,
    pub exchanges: AtomicU64,
    pub stream_bytes: AtomicU64,
    pub stream_connections: AtomicU64,
    pub packets: AtomicU64,
    pub console_lines: AtomicU64,
    pub forks: AtomicU64,
}

impl Health {
    /// Writes down that something is wrong.
    pub fn error(&self, message: String) {
        self.errors.fetch_add(1, Relaxed);
        let mut messages = self.messages.lock().unwrap_or_else(PoisonError::into_inner);
        if messages.len() < MESSAGES {
            messages.push(message);
        }
    }

    /// Returns the counters; clocks and entropy are the caller's to add.
    pub fn status(&self) -> Status {
        Status {
            errors: self.errors.load(Relaxed),
            messages: self
                .messages
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .clone(),
            page_writes: self.page_writes.load(Relaxed),
            passes: self.passes.load(Relaxed),
            disk_completed: self.disk_completed.load(Relaxed),
            disk_flushed: self.disk_flushed.load(Relaxed),
            tail_completed: self.tail_completed.load(Relaxed),
            file_cycles: self.file_cycles.load(Relaxed),
            timer_ticks: self.timer_ticks.load(Relaxed),
            timer_late_us: self.timer_late_us.load(Relaxed),
            exchanges: self.exchanges.load(Relaxed),
            stream_bytes: self.stream_bytes.load(Relaxed),
            stream_connections: self.stream_connections.load(Relaxed),
            packets: self.packets.load(Relaxed),
            console_lines: self.console_lines.load(Relaxed),
            forks: self.forks.load(Relaxed),
            ..Status::default()
        }
    }
}
