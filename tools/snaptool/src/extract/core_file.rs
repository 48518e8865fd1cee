//! ELF core files of a guest: its memory as segments, its vCPUs as threads, its kernel's addresses.
//!
//! ```text
//! ELF header | program headers | notes | padding to a page | region 0 | region 1 | ...
//! ```
//!
//! The core is of type ET_CORE for x86-64. Memory is written once, region by region; each region
//! has a program header. With virtual addresses further headers point into the same bytes, one for
//! each run of the kernel's address space.

mod address_map;
mod guest_pages;
mod kernel;
mod layout;
mod note;
mod page_table;
mod qemu_note;
mod vcpu;
mod vmcoreinfo;

use std::path::Path;

use anyhow::Context;
use serde::Serialize;
use snapfile::{Architecture, Snapshot};

use super::target::Target;
use crate::cli::Addresses;
use crate::output::{Output, printable, size};
use kernel::Kernel;
use layout::Layout;
use vcpu::Vcpu;
use vmcoreinfo::{KernelIdentity, VmCoreInfo};

/// What a core file holds, as `--json` shows it.
#[derive(Debug, Serialize)]
pub struct Contents {
    /// Which addresses debuggers use.
    addresses: Addresses,
    /// Segments with virtual addresses.
    virtual_segments: usize,
    /// Bytes of virtual addresses in them.
    virtual_bytes: u64,
    /// Bytes of virtual addresses that found no room in the table of segments.
    omitted_bytes: u64,
    /// Whether all page tables were followed to their ends.
    page_tables_complete: bool,
    /// The guest's kernel, if it is a Linux that describes itself.
    linux: Option<KernelIdentity>,
}

impl Contents {
    /// Prints the facts for people.
    pub fn print(&self, output: &mut Output) -> std::io::Result<()> {
        match self.addresses {
            Addresses::Physical => output.fact("addresses", "physical")?,
            Addresses::Virtual => {
                let mut facts = format!(
                    "virtual, {} in {} segments",
                    size(self.virtual_bytes),
                    self.virtual_segments
                );
                if self.omitted_bytes > 0 {
                    facts += &format!("; {} in short segments omitted", size(self.omitted_bytes));
                }
                if !self.page_tables_complete {
                    facts += "; page tables beyond all bounds were not followed";
                }
                output.fact("addresses", facts)?;
            }
        }
        if let Some(linux) = &self.linux {
            let mut facts = format!("Linux {}", printable(&linux.osrelease));
            if let Some(offset) = linux.kernel_offset {
                facts += &format!(", KASLR offset {offset:#x}");
            }
            output.fact("kernel", facts)?;
        }
        Ok(())
    }
}

/// Begins a core file; memory is yet to be written to it. `program` is the number of a vCPU.
///
/// # Errors
/// The guest is not x86-64; virtual addresses are asked for and there are none; the snapshot cannot
/// be read or the file not be written.
pub fn create(
    path: &Path,
    snapshot: &Snapshot,
    addresses: Option<Addresses>,
    program: Option<u32>,
) -> anyhow::Result<(Target, Contents)> {
    let architecture = snapshot.header().architecture;
    anyhow::ensure!(
        architecture == Architecture::X86_64,
        "no ELF core for a guest of architecture {architecture}"
    );
    let vcpus = Vcpu::all(snapshot).context("registers of the vCPUs")?;
    let mut kernel = Kernel::find(snapshot, &vcpus, program).context("kernel of the guest")?;
    let addresses = match addresses {
        Some(Addresses::Physical) if program.is_some() => {
            anyhow::bail!("a program has virtual addresses; --addresses physical has none")
        }
        None if kernel.map.is_empty() => Addresses::Physical,
        None => Addresses::Virtual,
        Some(Addresses::Virtual) if kernel.map.is_empty() => anyhow::bail!(
            "no virtual addresses: no vCPU has 64-bit page tables that map the upper half; \
             --addresses physical makes a core without"
        ),
        Some(addresses) => addresses,
    };
    let regions = snapshot.memory_map().regions();
    let omitted_bytes = kernel.map.keep_longest(layout::max_runs(regions.len()));
    let map = (addresses == Addresses::Virtual).then_some(&kernel.map);
    let mut notes = note::vcpu_notes(&vcpus)?;
    notes.extend(qemu_note::vcpu_notes(&vcpus)?);
    if let Some(info) = &kernel.vmcoreinfo {
        note::write_note(&mut notes, vmcoreinfo::NAME, 0, info.content())?;
    }
    let layout = Layout::new(regions, map, notes.len() as u64);
    let target = Target::create(
        path,
        layout.len_bytes(),
        &layout.head(&notes)?,
        layout.region_offsets().collect(),
    )?;
    let runs = map.map_or(&[][..], |map| map.runs());
    let contents = Contents {
        addresses,
        virtual_segments: runs.len(),
        virtual_bytes: runs.iter().map(|run| run.len_bytes).sum(),
        omitted_bytes: if runs.is_empty() { 0 } else { omitted_bytes },
        page_tables_complete: kernel.is_complete,
        linux: kernel.vmcoreinfo.as_ref().map(VmCoreInfo::identity),
    };
    Ok((target, contents))
}
