//! Snapshots asked for through the API: one at a time, each on its own thread.
//!
//! States: idle -> running -> ended (done, cancelled, abandoned, failed) -> running ... The lock guards which
//! snapshot is the latest and how it ended; it is never held while one is written.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use tokio::sync::watch;

use snapshot::{ErrorKind, SaveControl, SaveOptions, SaveReport};

use super::vm::Vm;
use crate::api::{ApiError, SnapshotRequest, SnapshotState, SnapshotStatus};

/// The latest snapshot of a machine.
#[derive(Debug, Default)]
pub struct Jobs {
    latest: Mutex<Option<Job>>,
    ended: Condvar,
}

#[derive(Debug)]
struct Job {
    id: u64,
    request: SnapshotRequest,
    control: SaveControl,
    end: watch::Sender<Option<End>>,
}

/// How a snapshot ended.
#[derive(Debug, Clone)]
struct End {
    state: SnapshotState,
    report: Option<Box<SaveReport>>,
    error: Option<ApiError>,
}

impl End {
    fn failed(error: ApiError) -> Self {
        Self {
            state: SnapshotState::Failed,
            report: None,
            error: Some(error),
        }
    }
}

/// Why a snapshot cannot begin now.
#[derive(Debug, thiserror::Error)]
pub enum Busy {
    /// Another one is being written.
    #[error("snapshot {id} to {} is being written", path.display())]
    Snapshot {
        /// Its number.
        id: u64,
        /// The file.
        path: std::path::PathBuf,
    },
    /// The files of a disk are changing.
    #[error("disk {disk} is being flattened: cancel that, or wait for its end")]
    Flatten {
        /// The disk.
        disk: String,
    },
}

impl Jobs {
    /// Begins a snapshot; the answer tells when it has ended.
    pub fn start(vm: &Arc<Vm>, request: SnapshotRequest, options: SaveOptions) -> Result<Ended, Busy> {
        let _starting = vm.starting();
        if let Some(disk) = vm.flattens.running() {
            return Err(Busy::Flatten { disk });
        }
        let mut latest = vm.jobs.lock();
        let id = match &*latest {
            Some(job) if job.is_running() => {
                return Err(Busy::Snapshot {
                    id: job.id,
                    path: job.request.path.clone(),
                });
            }
            Some(job) => job.id + 1,
            None => 1,
        };
        let control = SaveControl::with_switch(Arc::clone(&vm.switch));
        let end = watch::Sender::new(None);
        let ended = Ended(end.subscribe());
        *latest = Some(Job {
            id,
            request: request.clone(),
            control: control.clone(),
            end,
        });
        drop(latest);
        let worker = Arc::clone(vm);
        let work = move || {
            let end = run(&worker, &request, &options, &control);
            worker.jobs.end(end);
        };
        if let Err(error) = thread::Builder::new().name("snapshot".to_owned()).spawn(work) {
            vm.jobs.end(End::failed(ApiError::from_error(&error)));
        }
        Ok(ended)
    }

    /// Gives up the snapshot being written; returns whether there is one.
    pub fn cancel(&self) -> bool {
        match &*self.lock() {
            Some(job) if job.is_running() => {
                job.control.cancel();
                true
            }
            _ => false,
        }
    }

    /// Returns whether a snapshot is being written.
    pub fn is_running(&self) -> bool {
        self.lock().as_ref().is_some_and(Job::is_running)
    }

    /// Returns how the latest snapshot stands.
    pub fn latest(&self) -> Option<SnapshotStatus> {
        self.lock().as_ref().map(Job::status)
    }

    /// Waits until no snapshot is being written.
    pub fn wait_until_idle(&self) {
        let running = |latest: &mut Option<Job>| latest.as_ref().is_some_and(Job::is_running);
        drop(self.ended.wait_while(self.lock(), running));
    }

    fn end(&self, end: End) {
        if let Some(job) = &*self.lock() {
            job.end.send_replace(Some(end));
        }
        self.ended.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, Option<Job>> {
        self.latest.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Tells when a snapshot has ended.
#[derive(Debug)]
pub struct Ended(watch::Receiver<Option<End>>);

impl Ended {
    /// Waits until it has.
    pub async fn wait(mut self) {
        // The sender goes away only with the process.
        let _ = self.0.wait_for(Option::is_some).await;
    }
}

impl Job {
    fn is_running(&self) -> bool {
        self.end.borrow().is_none()
    }

    fn status(&self) -> SnapshotStatus {
        let end = self.end.borrow().clone();
        let (state, report, error) = match end {
            None => (SnapshotState::Running, None, None),
            Some(end) => (end.state, end.report.map(|report| *report), end.error),
        };
        let progress = self.control.progress();
        SnapshotStatus {
            id: self.id,
            path: self.request.path.clone(),
            state,
            progress,
            report,
            error,
        }
    }
}

fn run(vm: &Vm, request: &SnapshotRequest, options: &SaveOptions, control: &SaveControl) -> End {
    let save = || snapshot::save(&vm.machine, &request.path, options, control);
    // A panic in the engine must not leave the API saying for ever that a snapshot is being written.
    match std::panic::catch_unwind(std::panic::AssertUnwindSafe(save)) {
        Ok(Ok(report)) => End {
            state: SnapshotState::Done,
            report: Some(Box::new(report)),
            error: None,
        },
        Ok(Err(error)) => {
            let state = match error.kind() {
                ErrorKind::Cancelled => SnapshotState::Cancelled,
                ErrorKind::Abandoned => SnapshotState::Abandoned,
                _ => SnapshotState::Failed,
            };
            End {
                state,
                report: None,
                error: Some(ApiError::from_error(&error)),
            }
        }
        Err(_) => {
            let error = ApiError {
                error: "the snapshot thread panicked; its message is in the machine's log".to_owned(),
                causes: Vec::new(),
            };
            End::failed(error)
        }
    }
}
