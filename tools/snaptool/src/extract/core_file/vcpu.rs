//! The vCPUs of a snapshot: registers by name, and which page tables are in force.
//!
//! Registers are taken from the parts `vcpu/0`, `vcpu/1`, ... of the vmstate by the paths under
//! which `inspect --vmstate` prints them (`regs.rip`, `sregs.cs.selector`, `msrs[0xc0000102]`). One
//! that is absent reads as zero; a part without an instruction pointer is no vCPU.

use std::collections::HashMap;

use anyhow::Context;
use snapfile::diff::FieldValue;
use snapfile::{SectionEntry, SectionKind, Snapshot};

use crate::vmstate;

const CR0_PG: u64 = 1 << 31;
const CR4_LA57: u64 = 1 << 12;
const EFER_LMA: u64 = 1 << 10;
/// Bits of CR3, and of an entry, that hold the address of a page table.
pub const ADDRESS_MASK: u64 = 0x000f_ffff_ffff_f000;

/// One vCPU.
#[derive(Debug)]
pub struct Vcpu {
    /// N of `vcpu/N`.
    pub number: u32,
    fields: HashMap<String, FieldValue>,
}

/// Where the page tables of a vCPU in long mode begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Paging {
    /// Guest physical address of the topmost table.
    pub root: u64,
    /// Levels of tables: 4 or 5.
    pub levels: u32,
}

impl Vcpu {
    /// Returns all vCPUs, by ascending number.
    pub fn all(snapshot: &Snapshot) -> anyhow::Result<Vec<Self>> {
        let mut parts: Vec<(u32, &SectionEntry)> = vmstate::parts(snapshot, SectionKind::VmState, "vcpu/")
            .filter_map(|entry| Some((entry.name.strip_prefix("vcpu/")?.parse().ok()?, entry)))
            .collect();
        parts.sort_by_key(|(number, _)| *number);
        let mut vcpus = Vec::with_capacity(parts.len());
        for (number, entry) in parts {
            let payload = snapshot.read_section(entry)?;
            let fields = snapfile::diff::fields(&payload).with_context(|| entry.name.clone())?;
            let fields: HashMap<_, _> = fields
                .into_iter()
                .map(|field| (field.path, field.value))
                .collect();
            if fields.contains_key("regs.rip") {
                vcpus.push(Self { number, fields });
            }
        }
        Ok(vcpus)
    }

    /// Makes a vCPU of some registers.
    #[cfg(test)]
    pub fn with_registers(number: u32, registers: &[(&str, u64)]) -> Self {
        let field = |&(path, value): &(&str, u64)| (path.to_owned(), FieldValue::Integer(value.into()));
        Self {
            number,
            fields: registers.iter().map(field).collect(),
        }
    }

    /// Returns a register; 0 if the vmstate does not have it.
    pub fn register(&self, path: &str) -> u64 {
        match self.fields.get(path) {
            Some(FieldValue::Integer(value)) => u64::try_from(*value).unwrap_or(0),
            _ => 0,
        }
    }

    /// Returns a field that is a string of bytes.
    pub fn bytes(&self, path: &str) -> Option<&[u8]> {
        match self.fields.get(path) {
            Some(FieldValue::Bytes(bytes)) => Some(bytes),
            _ => None,
        }
    }

    /// Returns the page tables in force, or `None` outside long mode.
    pub fn paging(&self) -> Option<Paging> {
        let long_mode =
            self.register("sregs.cr0") & CR0_PG != 0 && self.register("sregs.efer") & EFER_LMA != 0;
        let levels = if self.register("sregs.cr4") & CR4_LA57 != 0 {
            5
        } else {
            4
        };
        long_mode.then(|| Paging {
            root: self.register("sregs.cr3") & ADDRESS_MASK,
            levels,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_long_mode_has_page_tables_that_are_followed() {
        let paging = |cr0, cr4, efer| {
            let registers = [
                ("sregs.cr0", cr0),
                ("sregs.cr3", 0x0800_0000_0012_3fff),
                ("sregs.cr4", cr4),
                ("sregs.efer", efer),
            ];
            Vcpu::with_registers(0, &registers).paging()
        };
        let root = 0x12_3000;
        assert_eq!(paging(0x8000_0011, 0x20, 0x500), Some(Paging { root, levels: 4 }));
        assert_eq!(
            paging(0x8000_0011, 0x1020, 0x500),
            Some(Paging { root, levels: 5 })
        );
        assert_eq!(paging(0x11, 0x20, 0x100), None, "paging is off");
        assert_eq!(paging(0x8000_0011, 0x20, 0), None, "PAE paging");
    }
}
