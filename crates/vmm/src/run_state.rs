//! Whether a machine runs, and why it stopped.

use std::fmt;

use crate::state::{Regs, Segment, Sregs};

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
    /// The guest asked for a reset, by the ACPI reset register or the keyboard controller.
    Reset,
    /// The guest switched the machine off, by the ACPI sleep control register.
    PowerOff,
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
    /// KVM_INTERNAL_ERROR number, if KVM reported an internal error.
    pub suberror: Option<u32>,
    /// What KVM adds to the number.
    pub data: Vec<u64>,
    /// General purpose registers, if they could be read.
    pub regs: Option<Regs>,
    /// System registers, if they could be read.
    pub sregs: Option<Sregs>,
    /// Bytes at the instruction pointer, up to the longest instruction; empty if they could not be read.
    pub instruction: Vec<u8>,
    /// The likely cause, if there is one.
    pub hint: Option<&'static str>,
}

/// One line; with `{:#}` the registers follow, a line for every few of them.
impl fmt::Display for CrashReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "vcpu {}: {}", self.vcpu, self.what)?;
        if let Some(suberror) = self.suberror {
            write!(f, " (suberror {suberror})")?;
        }
        if let Some(regs) = &self.regs {
            write!(f, " at rip {:#x}", regs.rip)?;
        }
        if !self.instruction.is_empty() {
            f.write_str(", bytes")?;
            self.instruction
                .iter()
                .try_for_each(|byte| write!(f, " {byte:02x}"))?;
        }
        if let Some(hint) = self.hint {
            write!(f, "; {hint}")?;
        }
        if f.alternate() {
            if let Some(regs) = &self.regs {
                write_regs(f, regs)?;
            }
            if let Some(sregs) = &self.sregs {
                write_sregs(f, sregs)?;
            }
        }
        Ok(())
    }
}

fn write_regs(f: &mut fmt::Formatter<'_>, regs: &Regs) -> fmt::Result {
    let rows = [
        [("rax", regs.rax), ("rbx", regs.rbx), ("rcx", regs.rcx)],
        [("rdx", regs.rdx), ("rsi", regs.rsi), ("rdi", regs.rdi)],
        [("rsp", regs.rsp), ("rbp", regs.rbp), ("r8 ", regs.r8)],
        [("r9 ", regs.r9), ("r10", regs.r10), ("r11", regs.r11)],
        [("r12", regs.r12), ("r13", regs.r13), ("r14", regs.r14)],
        [("r15", regs.r15), ("rip", regs.rip), ("rfl", regs.rflags)],
    ];
    write_rows(f, &rows)
}

fn write_sregs(f: &mut fmt::Formatter<'_>, sregs: &Sregs) -> fmt::Result {
    let rows = [
        [("cr0", sregs.cr0), ("cr2", sregs.cr2), ("cr3", sregs.cr3)],
        [("cr4", sregs.cr4), ("cr8", sregs.cr8), ("efer", sregs.efer)],
        [
            ("gdt", sregs.gdt.base),
            ("idt", sregs.idt.base),
            ("apic", sregs.apic_base),
        ],
    ];
    write_rows(f, &rows)?;
    let segments = [
        ("cs", &sregs.cs),
        ("ds", &sregs.ds),
        ("ss", &sregs.ss),
        ("tr", &sregs.tr),
    ];
    for (name, segment) in segments {
        let Segment {
            selector,
            base,
            limit,
            type_,
            l,
            db,
            ..
        } = segment;
        write!(
            f,
            "\n  {name}  {selector:04x} base {base:#x} limit {limit:#x} type {type_:#x} l {l} db {db}"
        )?;
    }
    Ok(())
}

fn write_rows(f: &mut fmt::Formatter<'_>, rows: &[[(&str, u64); 3]]) -> fmt::Result {
    for row in rows {
        f.write_str("\n ")?;
        row.iter()
            .try_for_each(|(name, value)| write!(f, " {name} {value:016x}"))?;
    }
    Ok(())
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
            Self::PowerOff => f.write_str("switched off by the guest"),
            Self::TripleFault => f.write_str("triple fault"),
            Self::SystemEvent { event } => write!(f, "system event {event}"),
            Self::Crashed(report) => report.fmt(f),
            Self::Requested => f.write_str("stopped on request"),
        }
    }
}
