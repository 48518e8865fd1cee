//! Where the machine is: from the start with `run` and `restore`, from its description on with `serve`.
//!
//! There is one machine in the life of a process. The slot is filled once and never emptied; handlers look into it,
//! others wait for it. The lock `making` keeps a second description from being made while the first is.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;
use vmm::{Machine, create_guest_memory};

use super::vm::Vm;
use crate::description::MachineDescription;

/// The one machine of this process, or the room for it.
#[derive(Debug)]
pub struct Host {
    vm: watch::Sender<Option<Arc<Vm>>>,
    making: Mutex<()>,
    stop: watch::Sender<bool>,
}

/// Why a machine is not made.
#[derive(Debug, thiserror::Error)]
pub enum NotMade {
    /// There is one already.
    #[error("there is a machine already, and one process runs one")]
    Exists,
    /// The process is about to end.
    #[error("the process is ending")]
    Ending,
    /// This host does not give what the description asks for.
    #[error("the machine cannot be made")]
    Failed(#[from] vmm::Error),
}

impl Host {
    /// A host without a machine.
    #[must_use]
    pub fn empty() -> Arc<Self> {
        Arc::new(Self {
            vm: watch::Sender::new(None),
            making: Mutex::default(),
            stop: watch::Sender::new(false),
        })
    }

    /// A host of this machine.
    #[must_use]
    pub fn of(vm: Vm) -> Arc<Self> {
        let host = Self::empty();
        host.vm.send_replace(Some(Arc::new(vm)));
        host
    }

    /// Returns the machine, if there is one.
    #[must_use]
    pub fn vm(&self) -> Option<Arc<Vm>> {
        self.vm.borrow().clone()
    }

    /// Makes the machine that is described, and starts it.
    ///
    /// # Errors
    /// See [`NotMade`]; the room stays as it was.
    pub fn make(&self, description: MachineDescription) -> Result<(), NotMade> {
        let _making = self.making.lock().unwrap_or_else(PoisonError::into_inner);
        if self.vm().is_some() {
            return Err(NotMade::Exists);
        }
        if *self.stop.borrow() {
            return Err(NotMade::Ending);
        }
        let vm = boot(description)?;
        self.vm.send_replace(Some(Arc::new(vm)));
        Ok(())
    }

    /// Waits for the machine; nothing if the end comes first.
    pub async fn wait_for_vm(&self) -> Option<Arc<Vm>> {
        let (mut vm, mut stopping) = (self.vm.subscribe(), self.stopping());
        tokio::select! {
            biased;
            // The senders live as long as `self`.
            found = vm.wait_for(Option::is_some) => found.ok()?.clone(),
            _ = stopping.wait_for(|stop| *stop) => None,
        }
    }

    /// Asks everything to end: the snapshot under way, the machine, the API.
    pub fn shut_down(&self) {
        if let Some(vm) = self.vm() {
            vm.jobs.cancel();
            vm.flattens.cancel();
            vm.machine.stop();
        }
        self.stop.send_replace(true);
    }

    /// Tells when everything was asked to end.
    #[must_use]
    pub fn stopping(&self) -> watch::Receiver<bool> {
        self.stop.subscribe()
    }
}

/// Boots a machine and lets it run.
///
/// # Errors
/// This host does not give what the description asks for.
pub fn boot(description: MachineDescription) -> Result<Vm, vmm::Error> {
    let config = description.to_config();
    let machine = Machine::boot(&config, create_guest_memory(&config)?)?;
    machine.resume()?;
    Ok(Vm::new(machine, description))
}
