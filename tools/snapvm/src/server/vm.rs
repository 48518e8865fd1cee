//! The machine as the API shares it: one object that handlers, the snapshot thread and the signal handler hold.

use std::sync::Arc;
use std::time::Instant;

use tokio::sync::watch;

use snapshot::RunSwitch;
use vmm::{Machine, RunState};

use super::jobs::Jobs;
use crate::api::{GuestStatus, State, Status};
use crate::guest_meter::GuestMeter;

/// What a machine is called and made of.
#[derive(Debug, Clone)]
pub struct Identity {
    /// Name given by the user; may be empty.
    pub name: String,
    /// Number of virtual processors.
    pub cpus: u32,
    /// Guest memory.
    pub memory_bytes: u64,
}

/// A machine, with all that its control API needs to know about it.
#[derive(Debug)]
pub struct Vm {
    /// The machine.
    pub machine: Machine,
    /// Keeps the wishes of users and snapshots apart.
    pub switch: Arc<RunSwitch>,
    /// Snapshots of this machine, one at a time.
    pub jobs: Jobs,
    identity: Identity,
    guest: GuestMeter,
    created: Instant,
    stop: watch::Sender<bool>,
}

impl Vm {
    /// Takes charge of a machine.
    #[must_use]
    pub fn new(machine: Machine, identity: Identity) -> Self {
        Self {
            machine,
            switch: Arc::default(),
            jobs: Jobs::default(),
            identity,
            guest: GuestMeter::default(),
            created: Instant::now(),
            stop: watch::Sender::new(false),
        }
    }

    /// Returns the machine's name; may be empty.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.identity.name
    }

    /// Returns what the vCPUs are doing.
    #[must_use]
    pub fn state(&self) -> State {
        match self.machine.state() {
            RunState::Created => State::Created,
            RunState::Running => State::Running,
            RunState::Paused => State::Paused,
            RunState::Stopped(_) => State::Stopped,
        }
    }

    /// Returns what the machine is doing.
    #[must_use]
    pub fn status(&self) -> Status {
        let stopped_reason = match self.machine.state() {
            RunState::Stopped(reason) => Some(reason.to_string()),
            _ => None,
        };
        Status {
            name: self.identity.name.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            state: self.state(),
            stopped_reason,
            cpus: self.identity.cpus,
            memory_bytes: self.identity.memory_bytes,
            uptime_ms: u64::try_from(self.created.elapsed().as_millis()).unwrap_or(u64::MAX),
            guest: self.guest(),
            snapshot: self.jobs.latest(),
        }
    }

    /// Returns what the built-in guest has done, if the guest is that one.
    #[must_use]
    pub fn guest(&self) -> Option<GuestStatus> {
        self.guest.read(&self.machine)
    }

    /// Begins to measure the built-in guest's longest gap anew; returns the figures before.
    #[must_use]
    pub fn reset_longest_gap(&self) -> Option<GuestStatus> {
        self.guest.reset(&self.machine)
    }

    /// Asks everything to end: the snapshot under way, the machine, the API.
    pub fn shut_down(&self) {
        self.jobs.cancel();
        self.machine.stop();
        self.stop.send_replace(true);
    }

    /// Tells when the machine was asked to shut down.
    pub fn stopping(&self) -> watch::Receiver<bool> {
        self.stop.subscribe()
    }
}
