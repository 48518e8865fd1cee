//! The guest's kernel as a debugger sees it: its addresses, and its own description of itself.
//!
//! The page tables of the vCPUs say what is mapped. The kernel's VMCOREINFO note adds the root of
//! the kernel's own page table: with page table isolation, that of a vCPU that runs a program
//! hides nearly all of the kernel.

use anyhow::Context;
use snapfile::Snapshot;

use super::address_map::AddressMap;
use super::page_table::{Half, Limits, Walk};
use super::vcpu::{Paging, Vcpu};
use super::vmcoreinfo::{self, VmCoreInfo};

/// What is known of the kernel.
#[derive(Debug)]
pub struct Kernel {
    /// What is mapped in the upper half of the address space, empty if no vCPU is in long mode, and
    /// in the lower half if a program was asked for.
    pub map: AddressMap,
    /// Whether all page tables were followed to their ends.
    pub is_complete: bool,
    /// The kernel's note, if it is a Linux that has one.
    pub vmcoreinfo: Option<VmCoreInfo>,
}

impl Kernel {
    /// Follows page tables and looks for the note; `program` is the vCPU whose lower half counts.
    ///
    /// # Errors
    /// A chunk cannot be decoded, that vCPU has no 64-bit page tables, or the user interrupted.
    pub fn find(snapshot: &Snapshot, vcpus: &[Vcpu], program: Option<u32>) -> anyhow::Result<Self> {
        let limits = Limits::for_memory(snapshot.memory_map().len_bytes());
        let mut walk = Walk::new(snapshot, limits);
        for paging in vcpus.iter().filter_map(Vcpu::paging) {
            walk.follow(paging, Half::Upper)?;
        }
        let mut vmcoreinfo = None;
        if let Some(paging) = vcpus.iter().find_map(Vcpu::paging)
            && !walk.map().is_empty()
        {
            vmcoreinfo = choose(snapshot, limits, &mut walk, paging.levels)?;
        }
        if let Some(number) = program {
            let vcpu = vcpus.iter().find(|vcpu| vcpu.number == number);
            let paging = vcpu.and_then(Vcpu::paging);
            let paging = paging.with_context(|| format!("vCPU {number} has no 64-bit page tables"))?;
            walk.follow(paging, Half::Lower)?;
        }
        let (map, is_complete) = walk.finish();
        Ok(Self {
            map,
            is_complete,
            vmcoreinfo,
        })
    }
}

/// Chooses the note of the kernel that runs, and follows its page table.
///
/// That note is believed which says of the kernel's page table what the page tables in force say.
/// If there is none, a kernel's page table must at least say so of itself. A note without these
/// addresses, by a kernel older than they are, is the last resort.
fn choose(
    snapshot: &Snapshot,
    limits: Limits,
    walk: &mut Walk<'_>,
    levels: u32,
) -> anyhow::Result<Option<VmCoreInfo>> {
    let notes = vmcoreinfo::find(snapshot)?;
    let mut old = None;
    let mut of_itself = None;
    for note in notes {
        let Some((table, root)) = note.page_table() else {
            old.get_or_insert(note);
            continue;
        };
        let paging = Paging { root, levels };
        if walk.map().translate(table) == Some(root) {
            walk.follow(paging, Half::Upper)?;
            return Ok(Some(note));
        }
        let mut alone = Walk::new(snapshot, limits);
        alone.follow(paging, Half::Upper)?;
        if alone.map().translate(table) == Some(root) {
            of_itself.get_or_insert((note, paging));
        }
    }
    let Some((note, paging)) = of_itself else {
        return Ok(old);
    };
    walk.follow(paging, Half::Upper)?;
    Ok(Some(note))
}
