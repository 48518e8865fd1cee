//! Flattenings asked for through the API: one at a time, each on its own thread, and none beside a snapshot.
//!
//! States: idle -> running -> ended (done, cancelled, failed) -> running ... The lock guards which flattening is the
//! latest; it is never held while one works.

use std::num::NonZeroU64;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use vmm::{Disk, FlattenOptions};

use super::vm::Vm;
use crate::api::{ApiError, FlattenRequest, FlattenState, FlattenStatus};

/// The latest flattening of a disk of a machine.
#[derive(Debug, Default)]
pub struct Flattens {
    latest: Mutex<Option<Flatten>>,
    ended: Condvar,
}

#[derive(Debug)]
struct Flatten {
    id: u64,
    disk: String,
    began: Instant,
    cancel: Arc<AtomicBool>,
    far: Arc<Far>,
    end: watch::Sender<Option<End>>,
}

/// How far it is; for display only.
#[derive(Debug, Default)]
struct Far {
    total: AtomicU64,
    done: AtomicU64,
}

#[derive(Debug, Clone)]
struct End {
    state: FlattenState,
    took: Duration,
    error: Option<ApiError>,
}

/// Why a flattening cannot begin.
#[derive(Debug, thiserror::Error)]
pub enum NotFlattened {
    /// The machine has no such disk.
    #[error("the machine has no disk {0}")]
    NoSuchDisk(String),
    /// Another one is under way.
    #[error("disk {0} is being flattened")]
    Busy(String),
    /// A snapshot is being written.
    #[error("a snapshot is being written: a disk is flattened before or after it")]
    Snapshot,
}

impl Flattens {
    /// Begins to flatten a disk; the answer tells when that has ended.
    pub fn start(vm: &Arc<Vm>, request: &FlattenRequest) -> Result<Ended, NotFlattened> {
        let disk = vm
            .machine
            .disks()
            .into_iter()
            .find(|disk| disk.id() == request.disk);
        let disk = disk.ok_or_else(|| NotFlattened::NoSuchDisk(request.disk.clone()))?;
        let _starting = vm.starting();
        if vm.jobs.is_running() {
            return Err(NotFlattened::Snapshot);
        }
        let mut latest = vm.flattens.lock();
        let id = match &*latest {
            Some(running) if running.is_running() => return Err(NotFlattened::Busy(running.disk.clone())),
            Some(ended) => ended.id + 1,
            None => 1,
        };
        let flatten = Flatten {
            id,
            disk: request.disk.clone(),
            began: Instant::now(),
            cancel: Arc::default(),
            far: Arc::default(),
            end: watch::Sender::new(None),
        };
        let options = FlattenOptions {
            bytes_per_second: request.bytes_per_second.and_then(NonZeroU64::new),
            cancel: Arc::clone(&flatten.cancel),
        };
        let (far, ended) = (Arc::clone(&flatten.far), Ended(flatten.end.subscribe()));
        *latest = Some(flatten);
        drop(latest);
        let worker = Arc::clone(vm);
        let work = move || {
            let (state, error) = run(&disk, &options, &far);
            worker.flattens.end(state, error);
        };
        if let Err(error) = thread::Builder::new().name("flatten".to_owned()).spawn(work) {
            vm.flattens
                .end(FlattenState::Failed, Some(ApiError::from_error(&error)));
        }
        Ok(ended)
    }

    /// Returns the disk that is being flattened.
    pub fn running(&self) -> Option<String> {
        let latest = self.lock();
        latest
            .as_ref()
            .filter(|latest| latest.is_running())
            .map(|latest| latest.disk.clone())
    }

    /// Gives up the flattening under way; returns whether there is one.
    pub fn cancel(&self) -> bool {
        match &*self.lock() {
            Some(flatten) if flatten.is_running() => {
                flatten.cancel.store(true, Ordering::Relaxed);
                true
            }
            _ => false,
        }
    }

    /// Returns how the latest flattening stands.
    pub fn latest(&self) -> Option<FlattenStatus> {
        self.lock().as_ref().map(Flatten::status)
    }

    /// Waits until none is under way.
    pub fn wait_until_idle(&self) {
        let running = |latest: &mut Option<Flatten>| latest.as_ref().is_some_and(Flatten::is_running);
        drop(self.ended.wait_while(self.lock(), running));
    }

    fn end(&self, state: FlattenState, error: Option<ApiError>) {
        if let Some(flatten) = &*self.lock() {
            let took = flatten.began.elapsed();
            flatten.end.send_replace(Some(End { state, took, error }));
        }
        self.ended.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, Option<Flatten>> {
        self.latest.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Tells when a flattening has ended.
#[derive(Debug)]
pub struct Ended(watch::Receiver<Option<End>>);

impl Ended {
    /// Waits until it has.
    pub async fn wait(mut self) {
        // The sender goes away only with the process, or with the next flattening.
        let _ = self.0.wait_for(Option::is_some).await;
    }
}

impl Flatten {
    fn is_running(&self) -> bool {
        self.end.borrow().is_none()
    }

    fn status(&self) -> FlattenStatus {
        let end = self.end.borrow().clone();
        let elapsed = end.as_ref().map_or_else(|| self.began.elapsed(), |end| end.took);
        FlattenStatus {
            id: self.id,
            disk: self.disk.clone(),
            state: end.as_ref().map_or(FlattenState::Running, |end| end.state),
            bytes_total: self.far.total.load(Ordering::Relaxed),
            bytes_done: self.far.done.load(Ordering::Relaxed),
            elapsed_us: u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX),
            error: end.and_then(|end| end.error),
        }
    }
}

/// Flattens the disk; tells how that ended.
fn run(disk: &Disk, options: &FlattenOptions, far: &Far) -> (FlattenState, Option<ApiError>) {
    let mut show = |progress: vmm::FlattenProgress| {
        far.total.store(progress.total_bytes, Ordering::Relaxed);
        far.done.store(progress.done_bytes, Ordering::Relaxed);
    };
    let flatten = || disk.flatten(options, &mut show);
    // A panic must not leave the API saying for ever that a disk is being flattened.
    match std::panic::catch_unwind(std::panic::AssertUnwindSafe(flatten)) {
        Ok(Ok(())) => (FlattenState::Done, None),
        Ok(Err(_)) if options.cancel.load(Ordering::Relaxed) => (FlattenState::Cancelled, None),
        Ok(Err(error)) => (FlattenState::Failed, Some(ApiError::from_error(&error))),
        Err(_) => {
            let error = ApiError {
                error: "the flattening thread panicked; its message is in the machine's log".to_owned(),
                causes: Vec::new(),
            };
            (FlattenState::Failed, Some(error))
        }
    }
}
