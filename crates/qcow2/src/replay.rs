//! Crash tests: everything written to a set of files is recorded, and every state that a crash could leave is rebuilt.
//!
//! A [`Recorder`] is a directory of files in memory. Each [`RecordedFile`] is a [`Storage`], so the code under test
//! writes to it as to a disk. Afterwards [`Recorder::kills`] gives the files as they were after each single event: what
//! a killed process leaves, because the kernel keeps what it was given. [`Recorder::power_losses`] gives samples of
//! what a power loss leaves: of all that was not yet synced any subset, in whole writes or in sectors.
//!
//! Assumptions about the medium: a sector of 512 bytes is written whole or not at all; a sync makes durable what was
//! written to that file before; changes of the directory reach the medium in their order, as in a journal.

#![allow(
    clippy::indexing_slicing,
    reason = "the events are recorded here, not read from an image"
)]

mod crash;
mod disk;
mod faults;
mod random;

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::storage::Storage;

pub use crash::Crash;
pub use faults::{FailingStorage, Fault};
pub use random::Random;

use disk::Disk;

/// The number of a file: its place in the order of creation. A name is an entry of the directory that refers to it.
type FileNumber = usize;

/// One thing that happened to the files or to their directory.
#[derive(Debug, Clone)]
enum Event {
    Write {
        file: FileNumber,
        offset: u64,
        data: Arc<[u8]>,
    },
    SetLen {
        file: FileNumber,
        len: u64,
    },
    Punch {
        file: FileNumber,
        offset: u64,
        len: u64,
    },
    Sync {
        file: FileNumber,
    },
    Directory(DirectoryChange),
    SyncDirectory,
    Mark(String),
}

/// One change of the directory.
#[derive(Debug, Clone)]
enum DirectoryChange {
    Create { name: String, file: FileNumber },
    Link { from: String, to: String },
    Rename { from: String, to: String },
    Remove { name: String },
}

/// What is recorded: the state before, the events, and the state now.
#[derive(Debug, Default)]
struct Log {
    before: Disk,
    events: Vec<Event>,
    now: Disk,
}

/// A directory of files in memory that remembers the order of everything done to it.
///
/// Clones refer to the same directory.
#[derive(Debug, Clone, Default)]
pub struct Recorder {
    log: Arc<Mutex<Log>>,
}

impl Recorder {
    /// Returns an empty directory.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a file that was durable before the recording began. To be called before the first recorded event.
    pub fn existing(&self, name: &str, content: Vec<u8>) -> Arc<RecordedFile> {
        let mut log = self.lock();
        assert!(
            log.events.is_empty(),
            "a file that existed before is added before the first event"
        );
        let file = log.before.add_file(name, content);
        log.now = log.before.clone();
        self.handle(file)
    }

    /// Creates an empty file under a name, as an event.
    pub fn create(&self, name: &str) -> Arc<RecordedFile> {
        let mut log = self.lock();
        let file = log.now.next_file();
        log.push(Event::Directory(DirectoryChange::Create {
            name: name.to_owned(),
            file,
        }));
        self.handle(file)
    }

    /// Opens the file that a name refers to now.
    pub fn open(&self, name: &str) -> Option<Arc<RecordedFile>> {
        let file = self.lock().now.file_named(name)?;
        Some(self.handle(file))
    }

    /// Gives a file a second name.
    ///
    /// # Errors
    /// As `link`: `NotFound` without the first name, `AlreadyExists` with the second.
    pub fn link(&self, from: &str, to: &str) -> io::Result<()> {
        let mut log = self.lock();
        log.now.file_named(from).ok_or(io::ErrorKind::NotFound)?;
        if log.now.file_named(to).is_some() {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        log.push(Event::Directory(DirectoryChange::Link {
            from: from.to_owned(),
            to: to.to_owned(),
        }));
        Ok(())
    }

    /// Gives a file another name, in place of what had that name.
    ///
    /// # Errors
    /// `NotFound` where no file has the first name.
    pub fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut log = self.lock();
        log.now.file_named(from).ok_or(io::ErrorKind::NotFound)?;
        log.push(Event::Directory(DirectoryChange::Rename {
            from: from.to_owned(),
            to: to.to_owned(),
        }));
        Ok(())
    }

    /// Takes a name away.
    ///
    /// # Errors
    /// `NotFound` where no file has the name.
    pub fn remove(&self, name: &str) -> io::Result<()> {
        let mut log = self.lock();
        log.now.file_named(name).ok_or(io::ErrorKind::NotFound)?;
        log.push(Event::Directory(DirectoryChange::Remove {
            name: name.to_owned(),
        }));
        Ok(())
    }

    /// Makes every change of the directory durable.
    pub fn sync_directory(&self) {
        self.lock().push(Event::SyncDirectory);
    }

    /// Notes a fact, such as "flush 3 was acknowledged": [`Crash::marks`] has those that came before the crash.
    pub fn mark(&self, fact: impl Into<String>) {
        self.lock().push(Event::Mark(fact.into()));
    }

    /// The number of events so far.
    pub fn event_count(&self) -> usize {
        self.lock().events.len()
    }

    /// The files after every prefix of the events: what a process leaves that is killed there.
    ///
    /// A write of several pages can also be cut at a page, which gives one more state in the middle of it.
    pub fn kills(&self) -> impl Iterator<Item = Crash> + use<> {
        let (before, events) = self.recorded();
        crash::kills(before, events)
    }

    /// Samples of what a power loss leaves, `per_sync` of them for each stretch between two syncs.
    ///
    /// The same seed gives the same samples.
    pub fn power_losses(&self, seed: u64, per_sync: usize) -> impl Iterator<Item = Crash> + use<> {
        let (before, events) = self.recorded();
        crash::power_losses(before, events, seed, per_sync)
    }

    fn recorded(&self) -> (Disk, Vec<Event>) {
        let log = self.lock();
        (log.before.clone(), log.events.clone())
    }

    fn handle(&self, file: FileNumber) -> Arc<RecordedFile> {
        Arc::new(RecordedFile {
            recorder: self.clone(),
            file,
        })
    }

    fn lock(&self) -> MutexGuard<'_, Log> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Log {
    fn push(&mut self, event: Event) {
        self.now.apply(&event);
        self.events.push(event);
    }
}

/// A file of a [`Recorder`]'s directory.
#[derive(Debug)]
pub struct RecordedFile {
    recorder: Recorder,
    file: FileNumber,
}

impl Storage for RecordedFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.recorder.lock().now.read(self.file, buf, offset);
        Ok(())
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.recorder.lock().push(Event::Write {
            file: self.file,
            offset,
            data: buf.into(),
        });
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        self.recorder.lock().push(Event::Sync { file: self.file });
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.recorder.lock().now.len(self.file))
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.recorder.lock().push(Event::SetLen { file: self.file, len });
        Ok(())
    }

    fn punch_hole(&self, offset: u64, len: u64) -> io::Result<()> {
        self.recorder.lock().push(Event::Punch {
            file: self.file,
            offset,
            len,
        });
        Ok(())
    }
}

#[cfg(test)]
mod tests;
