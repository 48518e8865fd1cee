//! One vCPU: the thread that runs it, and what it does with each exit from the guest.
//!
//! The vCPU sits behind a lock that its thread holds while it runs; parked, the thread has let go of it,
//! so whoever saves or restores the vCPU takes the same lock.
//!
//! A vCPU is parked only when KVM_RUN was interrupted, never right after a port or memory-mapped access:
//! such an instruction is complete only when KVM_RUN is entered once more, and state saved before that
//! would repeat or lose it.

use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use kvm_bindings::{KVM_SYSTEM_EVENT_RESET, KVM_SYSTEM_EVENT_SHUTDOWN};
use kvm_ioctls::{VcpuExit, VcpuFd};
use vm_memory::GuestMemoryMmap;

use crate::arch::platform::Capabilities;
use crate::crash;
use crate::device::Bus;
use crate::error::{Error, Result};
use crate::kick::{self, ImmediateExit};
use crate::run_control::RunControl;
use crate::run_state::StopReason;

/// The surroundings that every vCPU of a machine needs to run.
#[derive(Debug)]
pub(crate) struct Surroundings {
    pub(crate) memory: GuestMemoryMmap,
    pub(crate) ports: Bus,
    pub(crate) mmio: Bus,
    pub(crate) capabilities: Capabilities,
    pub(crate) control: Arc<RunControl>,
}

/// A vCPU.
#[derive(Debug)]
pub(crate) struct Vcpu {
    pub(crate) id: u32,
    pub(crate) fd: VcpuFd,
}

/// What follows from an exit.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    Continue,
    Park,
    Stop(StopReason),
    /// The vCPU cannot go on; the words say why.
    Crash(String),
}

/// Starts the thread of a vCPU, parked.
pub(crate) fn spawn(vcpu: Arc<Mutex<Vcpu>>, around: &Arc<Surroundings>) -> Result<()> {
    let (id, immediate_exit) = {
        let vcpu = vcpu.lock().unwrap_or_else(PoisonError::into_inner);
        (vcpu.id, Arc::new(ImmediateExit::map(&vcpu.fd)?))
    };
    let thread_around = Arc::clone(around);
    let thread_exit = Arc::clone(&immediate_exit);
    let thread: JoinHandle<()> = std::thread::Builder::new()
        .name(format!("vcpu{id}"))
        .spawn(move || thread_main(&vcpu, &thread_around, &thread_exit))
        .map_err(|source| Error::Io {
            operation: "starting a vcpu thread",
            source,
        })?;
    around.control.add(immediate_exit, thread);
    Ok(())
}

fn thread_main(vcpu: &Mutex<Vcpu>, around: &Surroundings, immediate_exit: &ImmediateExit) {
    kick::unblock_on_this_thread();
    while around.control.wait_to_run(immediate_exit) {
        // A panic in a device must not leave the machine's owner waiting for this thread for ever.
        let run = std::panic::AssertUnwindSafe(|| {
            vcpu.lock()
                .unwrap_or_else(PoisonError::into_inner)
                .run_until_parked(around)
        });
        let reason = std::panic::catch_unwind(run).unwrap_or_else(|_| Some(crash::panicked()));
        around.control.parked(reason);
    }
}

impl Vcpu {
    /// Runs the guest until it is to be parked or the machine is at its end.
    fn run_until_parked(&mut self, around: &Surroundings) -> Option<StopReason> {
        loop {
            match self.run_once(around) {
                Next::Continue => {}
                Next::Park => return None,
                Next::Stop(reason) => return Some(reason),
                Next::Crash(what) => {
                    return Some(StopReason::Crashed(Box::new(crash::report(self, around, what))));
                }
            }
        }
    }

    fn run_once(&mut self, around: &Surroundings) -> Next {
        match self.fd.run() {
            Ok(VcpuExit::IoOut(port, data)) => stop_if(around.ports.write(port.into(), data)),
            Ok(VcpuExit::IoIn(port, data)) => {
                around.ports.read(port.into(), data);
                Next::Continue
            }
            Ok(VcpuExit::MmioWrite(address, data)) => stop_if(around.mmio.write(address, data)),
            Ok(VcpuExit::MmioRead(address, data)) => {
                around.mmio.read(address, data);
                Next::Continue
            }
            // The in-kernel interrupt controller waits for the interrupt itself, so these ask for nothing.
            Ok(VcpuExit::Hlt | VcpuExit::Intr | VcpuExit::IrqWindowOpen | VcpuExit::IoapicEoi(_)) => {
                Next::Continue
            }
            Ok(VcpuExit::Shutdown) => Next::Stop(StopReason::TripleFault),
            Ok(VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_RESET, _)) => Next::Stop(StopReason::Reset),
            Ok(VcpuExit::SystemEvent(event, _)) => {
                debug_assert!(event >= KVM_SYSTEM_EVENT_SHUTDOWN);
                Next::Stop(StopReason::SystemEvent { event })
            }
            Ok(VcpuExit::InternalError) => Next::Crash("internal error of kvm".into()),
            Ok(VcpuExit::FailEntry(reason, cpu)) => Next::Crash(format!(
                "the processor refused to enter the guest: reason {reason:#x} on cpu {cpu}"
            )),
            Ok(VcpuExit::MemoryFault { gpa, size, .. }) => {
                Next::Crash(format!("guest memory {gpa:#x}+{size:#x} cannot be accessed"))
            }
            Ok(exit) => Next::Crash(format!("unexpected exit {exit:?}")),
            Err(error) => after_error(error, &around.control),
        }
    }
}

fn stop_if(reason: Option<StopReason>) -> Next {
    reason.map_or(Next::Continue, Next::Stop)
}

/// EINTR is a kick or a stray signal; EAGAIN is a vCPU that was woken from its wait for a start-up IPI.
fn after_error(error: kvm_ioctls::Error, control: &RunControl) -> Next {
    match error.errno() {
        libc::EINTR if control.must_leave() => Next::Park,
        libc::EINTR | libc::EAGAIN => Next::Continue,
        _ => Next::Crash(format!("KVM_RUN: {error}")),
    }
}
