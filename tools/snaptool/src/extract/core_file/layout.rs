//! Where everything is in a core file, and the headers that say so.
//!
//! In a core with virtual addresses those of the regions themselves are
//! [`PHYSICAL_BASE`] + guest physical address: no processor can use such an address, so physical
//! memory can be looked at there and is never taken for the memory of a program.
//!
//! The order of the headers matters to tools for Linux. `crash` takes everything before the bytes
//! of the first segment for headers and finds physical addresses by the first segment that has
//! them, so regions come first. `makedumpfile` takes the last segment below the kernel's image for
//! the kernel's map of all memory, so if there is such a map, its beginning comes last.

use byteorder::{LittleEndian, WriteBytesExt};
use snapfile::{MemoryRegion, PAGE_SIZE};

use super::address_map::{AddressMap, Run};
use super::vmcoreinfo::START_KERNEL_MAP;

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

/// Program headers that e_phnum can count; 0xffff would mean "elsewhere", which `crash` cannot read.
const MAX_PROGRAM_HEADERS: usize = 0xfffe;

/// Where a core with virtual addresses shows guest physical address 0.
pub const PHYSICAL_BASE: u64 = 1 << 63;

/// Returns how many runs of virtual addresses there is room for.
pub fn max_runs(regions: usize) -> usize {
    MAX_PROGRAM_HEADERS.saturating_sub(1 + regions)
}

/// Where everything is in the file.
pub struct Layout<'a> {
    regions: &'a [MemoryRegion],
    /// Runs of virtual addresses; `None` if the regions are at their guest physical addresses.
    map: Option<&'a AddressMap>,
    notes_len: u64,
}

impl<'a> Layout<'a> {
    /// Lays out a file of these regions, runs of virtual addresses, and bytes of notes.
    pub fn new(regions: &'a [MemoryRegion], map: Option<&'a AddressMap>, notes_len: u64) -> Self {
        Self {
            regions,
            map,
            notes_len,
        }
    }

    /// Where each region begins in the file.
    pub fn region_offsets(&self) -> impl Iterator<Item = u64> {
        self.regions.iter().scan(self.memory_offset(), |end, region| {
            let offset = *end;
            *end += region.len_bytes;
            Some(offset)
        })
    }

    /// Length of the file.
    pub fn len_bytes(&self) -> u64 {
        self.memory_offset() + self.regions.iter().map(|region| region.len_bytes).sum::<u64>()
    }

    /// ELF header, program headers and notes.
    ///
    /// # Errors
    /// There are more segments than an ELF header can count.
    pub fn head(&self, notes: &[u8]) -> anyhow::Result<Vec<u8>> {
        let mut out = self.elf_header()?;
        let notes_offset = u64::from(ELF_HEADER_LEN) + self.program_headers_len();
        ProgramHeader {
            kind: PT_NOTE,
            flags: PF_R,
            offset: notes_offset,
            virtual_address: 0,
            guest_address: 0,
            file_bytes: self.notes_len,
            memory_bytes: 0,
        }
        .write(&mut out)?;
        for header in self.segments() {
            header.write(&mut out)?;
        }
        out.extend_from_slice(notes);
        Ok(out)
    }

    /// The headers of all segments, in the order that tools need.
    fn segments(&self) -> Vec<ProgramHeader> {
        let offsets: Vec<u64> = self.region_offsets().collect();
        let base = if self.map.is_some() { PHYSICAL_BASE } else { 0 };
        let region = |(region, offset): (&MemoryRegion, &u64)| {
            let address = base | region.guest_address;
            segment(*offset, address, region.guest_address, region.len_bytes)
        };
        let run = |run: &Run| {
            let offset = self.offset_of(run.guest_address, &offsets);
            segment(offset, run.virtual_address, run.guest_address, run.len_bytes)
        };
        let runs = self.runs();
        let linear = self
            .map
            .and_then(|map| map.linear(PHYSICAL_BASE..START_KERNEL_MAP));
        let (before, from_linear) = runs.split_at(linear.unwrap_or(runs.len()));
        let (linear, after) = from_linear.split_at(from_linear.len().min(1));
        let regions = self.regions.iter().zip(&offsets).map(region);
        regions
            .chain([before, after, linear].into_iter().flatten().map(run))
            .collect()
    }

    fn runs(&self) -> &'a [Run] {
        self.map.map_or(&[], AddressMap::runs)
    }

    fn elf_header(&self) -> anyhow::Result<Vec<u8>> {
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
        out.write_u16::<LittleEndian>(u16::try_from(self.program_headers())?)?;
        out.write_u16::<LittleEndian>(0)?; // section header size
        out.write_u16::<LittleEndian>(0)?; // section headers
        out.write_u16::<LittleEndian>(0)?; // section name table
        Ok(out)
    }

    fn program_headers(&self) -> usize {
        1 + self.regions.len() + self.runs().len()
    }

    fn program_headers_len(&self) -> u64 {
        self.program_headers() as u64 * u64::from(PROGRAM_HEADER_LEN)
    }

    fn memory_offset(&self) -> u64 {
        (u64::from(ELF_HEADER_LEN) + self.program_headers_len() + self.notes_len).next_multiple_of(PAGE_SIZE)
    }

    /// Where the byte at a guest physical address, which is memory, is in the file.
    fn offset_of(&self, guest_address: u64, region_offsets: &[u64]) -> u64 {
        let index = self
            .regions
            .partition_point(|region| region.end() <= guest_address);
        match (self.regions.get(index), region_offsets.get(index)) {
            (Some(region), Some(offset)) => offset + (guest_address - region.guest_address),
            _ => self.len_bytes(),
        }
    }
}

struct ProgramHeader {
    kind: u32,
    flags: u32,
    offset: u64,
    virtual_address: u64,
    guest_address: u64,
    file_bytes: u64,
    memory_bytes: u64,
}

fn segment(offset: u64, virtual_address: u64, guest_address: u64, len_bytes: u64) -> ProgramHeader {
    ProgramHeader {
        kind: PT_LOAD,
        flags: PF_X_W_R,
        offset,
        virtual_address,
        guest_address,
        file_bytes: len_bytes,
        memory_bytes: len_bytes,
    }
}

impl ProgramHeader {
    fn write(&self, out: &mut Vec<u8>) -> std::io::Result<()> {
        out.write_u32::<LittleEndian>(self.kind)?;
        out.write_u32::<LittleEndian>(self.flags)?;
        out.write_u64::<LittleEndian>(self.offset)?;
        out.write_u64::<LittleEndian>(self.virtual_address)?;
        out.write_u64::<LittleEndian>(self.guest_address)?;
        out.write_u64::<LittleEndian>(self.file_bytes)?;
        out.write_u64::<LittleEndian>(self.memory_bytes)?;
        // No alignment is stated, as in the cores of QEMU and kdump: `crash` tells them by this.
        out.write_u64::<LittleEndian>(0)
    }
}
