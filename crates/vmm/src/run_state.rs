//! Whether a machine runs, and why it stopped.

use std::fmt;

/// Where a machine is in its life.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RunState {
    /// Created or restored; no vCPU has run yet.
    Created,
    /// The vCPUs run.
    Running,
    /// Every vCPU is parked; the machine can be saved.
    Paused,
    /// The guest ended or broke; it never runs again.
    Stopped(StopReason),
}

/// Why a machine stopped for good.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum StopReason {
    /// The guest wrote `code` to the debug exit port.
    DebugExit {
        /// The value written; an isa-debug-exit device makes `code * 2 + 1` the exit status.
        code: u32,
    },
    /// The guest asked the keyboard controller for a reset.
    Reset,
    /// A triple fault.
    TripleFault,
    /// KVM reported a system event, for instance a shutdown request.
    SystemEvent {
        /// KVM's number of the event.
        event: u32,
    },
    /// A vCPU cannot go on.
    Crashed(Box<CrashReport>),
    /// [`Machine::stop`](crate::Machine::stop) was called.
    Requested,
}

/// What is known about a vCPU that cannot go on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CrashReport {
    /// Number of the vCPU.
    pub vcpu: u32,
    /// What happened, in one line.
    pub what: String,
}

impl fmt::Display for CrashReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "vcpu {}: {}", self.vcpu, self.what)
    }
}

impl fmt::Display for RunState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Created => f.write_str("created"),
            Self::Running => f.write_str("running"),
            Self::Paused => f.write_str("paused"),
            Self::Stopped(reason) => write!(f, "stopped ({reason})"),
        }
    }
}

impl fmt::Display for StopReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::DebugExit { code } => write!(f, "debug exit with code {code:#x}"),
            Self::Reset => f.write_str("reset by the guest"),
            Self::TripleFault => f.write_str("triple fault"),
            Self::SystemEvent { event } => write!(f, "system event {event}"),
            Self::Crashed(report) => report.fmt(f),
            Self::Requested => f.write_str("stopped on request"),
        }
    }
}
