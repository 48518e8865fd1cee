//! ELF core files: guest memory as PT_LOAD segments, vCPU registers as notes.
//!
//! ```text
//! ELF header | program headers | notes | padding to a page | region 0 | region 1 | ...
//! ```
//!
//! The core is of type ET_CORE for x86-64. Each memory region is one segment whose physical and
//! virtual addresses are both the guest physical address: page tables are not followed.

use std::path::Path;

use anyhow::Context;
use byteorder::{LittleEndian, WriteBytesExt};
use snapfile::{Architecture, MemoryRegion, PAGE_SIZE, Snapshot};

use super::note;
use super::target::Target;

const ELF_HEADER_LEN: u16 = 64;
const PROGRAM_HEADER_LEN: u16 = 56;
const ELFCLASS64: u8 = 2;
const ELFDATA2LSB: u8 = 1;
const EV_CURRENT: u8 = 1;
const ET_CORE: u16 = 4;
const EM_X86_64: u16 = 62;
const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
const PF_X_W_R: u32 = 7;
const PF_R: u32 = 4;

/// Begins a core file; memory is yet to be written to it.
pub fn create(path: &Path, snapshot: &Snapshot) -> anyhow::Result<Target> {
    let architecture = snapshot.header().architecture;
    anyhow::ensure!(
        architecture == Architecture::X86_64,
        "no ELF core for a guest of architecture {architecture}"
    );
    let notes = note::vcpu_notes(snapshot).context("registers of the vCPUs")?;
    let layout = Layout::new(snapshot.memory_map().regions(), notes.len() as u64);
    let head = layout.head(&notes)?;
    Target::create(
        path,
        layout.len_bytes,
        &head,
        layout.segments.iter().map(|segment| segment.offset).collect(),
    )
}

/// Where everything is in the file.
struct Layout {
    notes_offset: u64,
    segments: Vec<Segment>,
    len_bytes: u64,
}

struct Segment {
    region: MemoryRegion,
    offset: u64,
}

impl Layout {
    fn new(regions: &[MemoryRegion], notes_len: u64) -> Self {
        let program_headers = (regions.len() as u64 + 1) * u64::from(PROGRAM_HEADER_LEN);
        let notes_offset = u64::from(ELF_HEADER_LEN) + program_headers;
        let mut end = (notes_offset + notes_len).next_multiple_of(PAGE_SIZE);
        let mut segments = Vec::with_capacity(regions.len());
        for &region in regions {
            segments.push(Segment { region, offset: end });
            end += region.len_bytes;
        }
        Self {
            notes_offset,
            segments,
            len_bytes: end,
        }
    }

    /// ELF header, program headers and notes.
    fn head(&self, notes: &[u8]) -> anyhow::Result<Vec<u8>> {
        let mut out = Vec::new();
        out.extend_from_slice(b"\x7fELF");
        out.extend_from_slice(&[ELFCLASS64, ELFDATA2LSB, EV_CURRENT]);
        out.resize(16, 0);
        out.write_u16::<LittleEndian>(ET_CORE)?;
        out.write_u16::<LittleEndian>(EM_X86_64)?;
        out.write_u32::<LittleEndian>(u32::from(EV_CURRENT))?;
        out.write_u64::<LittleEndian>(0)?; // entry
        out.write_u64::<LittleEndian>(u64::from(ELF_HEADER_LEN))?; // program headers
        out.write_u64::<LittleEndian>(0)?; // section headers
        out.write_u32::<LittleEndian>(0)?; // flags
        out.write_u16::<LittleEndian>(ELF_HEADER_LEN)?;
        out.write_u16::<LittleEndian>(PROGRAM_HEADER_LEN)?;
        out.write_u16::<LittleEndian>(u16::try_from(self.segments.len() + 1)?)?;
        out.write_u16::<LittleEndian>(0)?; // section header size
        out.write_u16::<LittleEndian>(0)?; // section headers
        out.write_u16::<LittleEndian>(0)?; // section name table
        program_header(
            &mut out,
            PT_NOTE,
            PF_R,
            self.notes_offset,
            0,
            notes.len() as u64,
            4,
        )?;
        for Segment { region, offset } in &self.segments {
            program_header(
                &mut out,
                PT_LOAD,
                PF_X_W_R,
                *offset,
                region.guest_address,
                region.len_bytes,
                PAGE_SIZE,
            )?;
        }
        out.extend_from_slice(notes);
        Ok(out)
    }
}

fn program_header(
    out: &mut Vec<u8>,
    kind: u32,
    flags: u32,
    offset: u64,
    address: u64,
    len_bytes: u64,
    align: u64,
) -> std::io::Result<()> {
    out.write_u32::<LittleEndian>(kind)?;
    out.write_u32::<LittleEndian>(flags)?;
    out.write_u64::<LittleEndian>(offset)?;
    out.write_u64::<LittleEndian>(address)?; // virtual
    out.write_u64::<LittleEndian>(address)?; // physical
    out.write_u64::<LittleEndian>(len_bytes)?; // in the file
    out.write_u64::<LittleEndian>(if kind == PT_NOTE { 0 } else { len_bytes })?; // in memory
    out.write_u64::<LittleEndian>(align)
}
