//! What a running guest tells the host about itself: progress, the longest gap, errors it found.
//!
//! Each vCPU rewrites the first words of its own page after every few steps. Host and guest race on
//! them without harm: each field is one aligned word.

use std::sync::atomic::Ordering;

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::builtin::BuiltinError;
use crate::builtin::layout::{CPU_PAGES, PAGE_SIZE, mailbox};

/// The guest stores its stamp, whose top byte is the vCPU.
const CPU_IN_STAMP: u64 = 0xff << 56;

/// What one vCPU of the guest last said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mailbox {
    /// Step counter: zero before the vCPU began, and then at least its number of pages. Differences are
    /// pages written, exact to the few steps between two updates.
    pub step: u64,
    /// The guest's time-stamp counter at the last update.
    pub tsc: u64,
    /// Longest time between two updates since [`Mailbox::reset_gap`], in time-stamp counter ticks.
    /// In a paced guest the idle time between two bursts counts.
    pub longest_gap: u64,
    /// Pages that did not hold the stamp they had to; zero unless memory was damaged.
    pub bad_stamps: u64,
}

impl Mailbox {
    /// Reads the mailbox of vCPU `cpu`.
    ///
    /// # Errors
    ///
    /// Memory that is too small for the guest.
    pub fn read(memory: &GuestMemoryMmap, cpu: u32) -> Result<Self, BuiltinError> {
        let field = |offset| {
            let gpa = address(cpu) + offset;
            memory
                .load(GuestAddress(gpa), Ordering::Relaxed)
                .map_err(|source| BuiltinError::Memory { gpa, source })
        };
        Ok(Self {
            step: field(mailbox::STEP)? & !CPU_IN_STAMP,
            tsc: field(mailbox::TSC)?,
            longest_gap: field(mailbox::LONGEST_GAP)?,
            bad_stamps: field(mailbox::BAD_STAMPS)?,
        })
    }

    /// Asks vCPU `cpu` to begin a new longest gap at its next update.
    ///
    /// # Errors
    ///
    /// Memory that is too small for the guest.
    pub fn reset_gap(memory: &GuestMemoryMmap, cpu: u32) -> Result<(), BuiltinError> {
        let gpa = address(cpu) + mailbox::RESET;
        memory
            .store(1_u32, GuestAddress(gpa), Ordering::Relaxed)
            .map_err(|source| BuiltinError::Memory { gpa, source })
    }
}

fn address(cpu: u32) -> u64 {
    CPU_PAGES + u64::from(cpu) * PAGE_SIZE
}
