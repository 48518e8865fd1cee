//! Page tables and a VMCOREINFO note in the memory of a test machine.
//!
//! The kernel of these machines shows all low memory at [`TEXT`] by one page of 2 MiB.

use super::Machine;

/// Where low memory begins for the kernel: 16 MiB above the place that it was linked for.
pub const TEXT: u64 = 0xffff_ffff_8100_0000;
/// KASLR offset and `phys_base` that belong to it.
pub const KERNEL_OFFSET: u64 = 0x8_0000;
pub const PHYSICAL_BASE: i64 = -0x100_0000;

pub const PAGE: u64 = 4096;
pub const LARGE_PAGE: u64 = 2 << 20;
pub const HUGE_PAGE: u64 = 1 << 30;

const PRESENT_WRITABLE: u64 = 3;
const LARGE: u64 = 1 << 7;

/// Page tables that grow from an address of low memory on.
pub struct PageTables {
    pub root: u64,
    levels: u32,
    next_table: u64,
}

impl PageTables {
    /// An empty root at `root`; further tables follow it.
    pub fn new(levels: u32, root: u64) -> Self {
        Self {
            root,
            levels,
            next_table: root + PAGE,
        }
    }

    /// A root that maps low memory at [`TEXT`].
    pub fn kernel(machine: &mut Machine, root: u64) -> Self {
        let mut tables = Self::new(machine.levels, root);
        tables.map(machine, TEXT, 0, LARGE_PAGE);
        tables
    }

    /// Maps one page of 4 KiB, 2 MiB or 1 GiB.
    pub fn map(&mut self, machine: &mut Machine, virtual_address: u64, guest_address: u64, size: u64) {
        let last = match size {
            PAGE => 1,
            LARGE_PAGE => 2,
            HUGE_PAGE => 3,
            other => panic!("no page has {other} bytes"),
        };
        let table = self.table(machine, virtual_address, last);
        let large = if last > 1 { LARGE } else { 0 };
        set_entry(
            machine,
            table,
            slot(virtual_address, last),
            guest_address | PRESENT_WRITABLE | large,
        );
    }

    /// The table of a level that an address needs; made if it is not there.
    pub fn table(&mut self, machine: &mut Machine, virtual_address: u64, level: u32) -> u64 {
        let mut table = self.root;
        for above in (level + 1..=self.levels).rev() {
            let slot = slot(virtual_address, above);
            let mut entry = entry(machine, table, slot);
            if entry == 0 {
                entry = self.next_table | PRESENT_WRITABLE;
                self.next_table += PAGE;
                set_entry(machine, table, slot, entry);
            }
            table = entry & !(PAGE - 1);
        }
        table
    }
}

/// Which entry of a table of this level an address selects.
pub fn slot(virtual_address: u64, level: u32) -> u64 {
    virtual_address >> (12 + 9 * (level - 1)) & 511
}

fn entry(machine: &Machine, table: u64, slot: u64) -> u64 {
    let at = usize::try_from(table + 8 * slot).unwrap();
    u64::from_le_bytes(machine.low[at..at + 8].try_into().unwrap())
}

/// A machine that looks like one that runs Linux.
pub fn linux() -> Machine {
    let mut machine = Machine::new();
    machine.levels = 4;
    let root = 0x1_0000;
    PageTables::kernel(&mut machine, root);
    machine.roots = [root; 2];
    put_note(&mut machine, 0x8_0000, &vmcoreinfo("6.1.0", root, PHYSICAL_BASE));
    machine
}

/// Writes an entry of a table in low memory.
pub fn set_entry(machine: &mut Machine, table: u64, slot: u64, entry: u64) {
    let at = usize::try_from(table + 8 * slot).unwrap();
    machine.low[at..at + 8].copy_from_slice(&entry.to_le_bytes());
}

/// What the kernel says of itself if its page table is at `root`.
pub fn vmcoreinfo(release: &str, root: u64, physical_base: i64) -> String {
    let table = TEXT + root;
    let filling = "NUMBER(filling)=1\n".repeat(250);
    format!(
        "OSRELEASE={release}\nBUILD-ID=00ff00ff\nPAGESIZE=4096\n{filling}SYMBOL(swapper_pg_dir)={table:x}\n\
         NUMBER(phys_base)={physical_base}\nKERNELOFFSET={KERNEL_OFFSET:x}\n"
    )
}

/// Puts a note where a kernel would keep it.
pub fn put_note(machine: &mut Machine, guest_address: u64, content: &str) {
    let mut note = Vec::new();
    for word in [11, u32::try_from(content.len()).unwrap(), 0] {
        note.extend_from_slice(&word.to_le_bytes());
    }
    note.extend_from_slice(b"VMCOREINFO\0\0");
    note.extend_from_slice(content.as_bytes());
    let at = usize::try_from(guest_address).unwrap();
    machine.low[at..at + note.len()].copy_from_slice(&note);
}
