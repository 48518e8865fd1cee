//! The machine as the API shares it: one object that handlers, the snapshot thread and the signal handler hold.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;
use snapshot::{KnownFingerprints, RunSwitch};
use vmm::{Disk, DiskEvent, Machine, RunState};

use super::flatten::Flattens;
use super::jobs::Jobs;
use crate::api::{BalloonStatus, GuestStatus, State, Status};
use crate::description::MachineDescription;
use crate::guest_meter::GuestMeter;

/// How long is waited for an event of a disk before the machine is looked at.
const DISK_EVENT_INTERVAL: Duration = Duration::from_millis(500);

/// A machine, with all that its control API needs to know about it.
#[derive(Debug)]
pub struct Vm {
    /// The machine.
    pub machine: Machine,
    /// Keeps the wishes of users and snapshots apart.
    pub switch: Arc<RunSwitch>,
    /// Snapshots of this machine, one at a time.
    pub jobs: Jobs,
    /// Flattenings of its disks, one at a time.
    pub flattens: Flattens,
    /// What the machine was made from.
    pub description: MachineDescription,
    /// What is known of the disks' layers.
    pub fingerprints: KnownFingerprints,
    /// Keeps a snapshot and a flattening from beginning at the same time; taken before the locks of either.
    starting: Mutex<()>,
    guest: GuestMeter,
    created: Instant,
}

impl Vm {
    /// Takes charge of a machine.
    #[must_use]
    pub fn new(machine: Machine, description: MachineDescription) -> Self {
        Self {
            machine,
            switch: Arc::default(),
            jobs: Jobs::default(),
            flattens: Flattens::default(),
            description,
            fingerprints: KnownFingerprints::default(),
            starting: Mutex::default(),
            guest: GuestMeter::default(),
            created: Instant::now(),
        }
    }

    /// Lets nobody else begin a snapshot or a flattening until the answer is dropped.
    pub(super) fn starting(&self) -> MutexGuard<'_, ()> {
        self.starting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Pauses the machine when a disk of it is full and is to wait for room; returns when the machine has stopped.
    pub fn heed_disks(&self) {
        while self.state() != State::Stopped {
            let Some(DiskEvent::Full { disk }) = self.machine.wait_disk_event(DISK_EVENT_INTERVAL) else {
                continue;
            };
            eprintln!(
                "snapvm: disk {disk} is full and the machine is paused; make room, then `snapvm resume`"
            );
            if let Err(error) = self.switch.pause(&self.machine) {
                tracing::error!(%error, disk, "the machine cannot be paused");
            }
        }
    }

    /// Returns the machine's name; may be empty.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.description.name
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
            name: self.description.name.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            state: self.state(),
            stopped_reason,
            cpus: self.description.cpus,
            memory_bytes: self.description.memory.0,
            uptime_ms: u64::try_from(self.created.elapsed().as_millis()).unwrap_or(u64::MAX),
            guest: self.guest(),
            snapshot: self.jobs.latest(),
            disks_full: self.disks_full(),
        }
    }

    /// Makes durable what the guest of a stopped machine has written, flushed or not.
    ///
    /// Not left to destructors: threads that wait for input own the machine as well, and end with the process.
    ///
    /// # Errors
    /// The medium of a disk failed, or has no room.
    pub fn close_disks(&self) -> anyhow::Result<()> {
        for disk in self.machine.disks() {
            let lost = || format!("disk {}: what the guest has not flushed may be lost", disk.id());
            disk.close().with_context(lost)?;
        }
        Ok(())
    }

    fn disks_full(&self) -> Vec<String> {
        let disks = self.machine.disks().into_iter();
        let full = disks.filter(Disk::waits_for_room);
        full.map(|disk| disk.id().to_owned()).collect()
    }

    /// Returns how large the balloon is and is to be, if there is one.
    #[must_use]
    pub fn balloon(&self) -> Option<BalloonStatus> {
        self.machine.balloon().map(|balloon| BalloonStatus {
            target_bytes: balloon.target_bytes(),
            actual_bytes: balloon.actual_bytes(),
        })
    }

    /// Asks the guest to give up so much memory; tells how the balloon stands then, if there is one.
    ///
    /// # Errors
    /// Says in words that the guest has less memory.
    pub fn set_balloon(&self, target_bytes: u64) -> Result<Option<BalloonStatus>, String> {
        if let Some(balloon) = self.machine.balloon() {
            balloon
                .set_target_bytes(target_bytes)
                .map_err(|error| error.to_string())?;
        }
        Ok(self.balloon())
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
}
