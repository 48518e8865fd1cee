//! The ELF core shows a kernel at its own addresses, whatever the page tables say.

mod common;

use std::path::PathBuf;

use common::elf::{Core, PT_NOTE};
use common::kernel::{
    HUGE_PAGE, KERNEL_OFFSET, LARGE_PAGE, PAGE, PHYSICAL_BASE, PageTables, TEXT, put_note, set_entry, slot,
    vmcoreinfo,
};
use common::{CODE, HIGH, MIB, Machine, complaint, gdb, json, run, text};
use serde_json::Value as Json;

/// Where tables may stand: zero memory of the test machine.
const TABLES: u64 = 0x1_0000;
const OTHER_TABLES: u64 = 0x4_0000;
const NOTE: u64 = 0x8_0000;
/// Where physical address 0 is in a core with virtual addresses.
const PHYSICAL: u64 = 1 << 63;

/// A machine whose vCPUs have page tables that map the kernel's text.
fn machine(levels: u32) -> (Machine, PageTables) {
    let mut machine = Machine::new();
    machine.levels = levels;
    let tables = PageTables::kernel(&mut machine, TABLES);
    machine.roots = [TABLES; 2];
    (machine, tables)
}

/// Extracts the core of a machine; the directory lives as long as the core is needed.
fn extract(machine: &Machine, options: &[&str]) -> (tempfile::TempDir, PathBuf, Json) {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("vm.vmsnap");
    machine.write(&file);
    let core = directory.path().join("vm.core");
    let arguments = ["restore", "--json", text(&file), "--elf-core", text(&core)];
    let report = json(arguments.iter().chain(options), 0);
    let contents = report["written"][0]["core"].clone();
    (directory, core, contents)
}

#[test]
fn the_kernel_is_at_its_virtual_addresses() {
    for levels in [4, 5] {
        let (machine, _) = machine(levels);
        let (_directory, core, contents) = extract(&machine, &[]);
        let core = Core::read(&core);
        assert_eq!(core.kernel_segments(), [(TEXT, 0, LARGE_PAGE)]);
        assert_eq!(core.at(TEXT, 2 * MIB), Some(&machine.low[..]), "{levels} levels");
        assert_eq!(contents["addresses"], "virtual");
        assert_eq!(contents["virtual_segments"], 1);
        assert_eq!(contents["page_tables_complete"], true);
        assert_eq!(contents["linux"], Json::Null);
    }
}

#[test]
fn memory_is_in_the_core_once_and_physical_addresses_reach_all_of_it() {
    let (mut machine, mut tables) = machine(4);
    for alias in 0..64 {
        tables.map(
            &mut machine,
            0xffff_8880_0000_0000 + alias * 3 * MIB as u64 * 2,
            0,
            LARGE_PAGE,
        );
    }
    let (_directory, core, _) = extract(&machine, &[]);
    let core = Core::read(&core);
    assert_eq!(core.kernel_segments().len(), 65);
    assert!(core.len() < 3 * MIB as u64 + 16 * PAGE, "{}", core.len());
    assert_eq!(core.headers[0].kind, PT_NOTE);
    let first: Vec<_> = core
        .segments()
        .take(2)
        .map(|header| header.guest_address)
        .collect();
    assert_eq!(first, [0, HIGH], "the regions come first");
    assert_eq!(core.at(PHYSICAL, 2 * MIB), Some(&machine.low[..]));
    assert_eq!(core.at(PHYSICAL + HIGH, MIB), Some(&machine.high[..]));
    assert!(
        core.segments()
            .all(|header| header.offset >= core.segments().next().unwrap().offset),
        "the first segment has the lowest offset"
    );
}

#[test]
fn pages_of_all_sizes_are_followed_merged_and_cut_to_memory() {
    let (mut machine, mut tables) = machine(4);
    // Two pages that go on, one that does not.
    let stack = 0xffff_c900_0000_0000;
    tables.map(&mut machine, stack, HIGH + 2 * PAGE, PAGE);
    tables.map(&mut machine, stack + PAGE, HIGH + 3 * PAGE, PAGE);
    tables.map(&mut machine, stack + 2 * PAGE, HIGH, PAGE);
    // A gigabyte of which 2 MiB and, behind a hole, 1 MiB are memory.
    let direct = 0xffff_8880_0000_0000;
    tables.map(&mut machine, direct, 0, HUGE_PAGE);
    // A device.
    tables.map(&mut machine, 0xffff_ffff_ff5f_c000, 0xfee0_0000, PAGE);
    let (_directory, core, _) = extract(&machine, &[]);
    let core = Core::read(&core);
    assert_eq!(
        core.kernel_segments(),
        [
            (direct, 0, 2 * MIB as u64),
            (direct + HIGH, HIGH, MIB as u64),
            (stack, HIGH + 2 * PAGE, 2 * PAGE),
            (stack + 2 * PAGE, HIGH, PAGE),
            (TEXT, 0, LARGE_PAGE),
        ]
    );
    assert_eq!(core.at(direct + HIGH, MIB), Some(&machine.high[..]));
    let last = core.segments().last().unwrap();
    assert_eq!(last.virtual_address, direct, "the map of all memory comes last");
}

#[test]
fn every_vcpu_adds_what_its_page_tables_map() {
    let (mut machine, mut tables) = machine(4);
    let shared = 0xffff_c900_0000_0000;
    tables.map(&mut machine, shared, HIGH, PAGE);
    let mut other = PageTables::kernel(&mut machine, OTHER_TABLES);
    other.map(&mut machine, shared, HIGH + PAGE, PAGE);
    other.map(&mut machine, shared + PAGE, HIGH + 8 * PAGE, PAGE);
    // A program's memory is not the kernel's.
    other.map(&mut machine, 0x40_0000, HIGH, PAGE);
    machine.roots[1] = OTHER_TABLES;
    let (_directory, core, _) = extract(&machine, &[]);
    let core = Core::read(&core);
    assert_eq!(
        core.kernel_segments(),
        [
            (shared, HIGH, PAGE),
            (shared + PAGE, HIGH + 8 * PAGE, PAGE),
            (TEXT, 0, LARGE_PAGE),
        ]
    );
    assert_eq!(core.at(0x40_0000, 1), None);
}

#[test]
fn the_program_that_a_vcpu_runs_can_be_added() {
    let (mut machine, _) = machine(4);
    let mut other = PageTables::kernel(&mut machine, OTHER_TABLES);
    other.map(&mut machine, 0x40_0000, HIGH + 128 * PAGE, PAGE);
    machine.roots[1] = OTHER_TABLES;
    let (directory, core, contents) = extract(&machine, &["--program", "1"]);
    assert_eq!(contents["virtual_segments"], 2);
    let core = Core::read(&core);
    assert_eq!(core.at(0x40_0000, 4096), Some(&[0xa5; 4096][..]));
    assert_eq!(core.at(TEXT, 2 * MIB), Some(&machine.low[..]));
    let (_directory, without, _) = extract(&machine, &["--program", "0"]);
    assert_eq!(Core::read(&without).at(0x40_0000, 1), None, "vCPU 0 runs another");

    let file = directory.path().join("vm.vmsnap");
    let refused = directory.path().join("refused.core");
    let arguments = ["restore", text(&file), "--elf-core", text(&refused)];
    for (options, reason) in [
        (&["--program", "2"][..], "vCPU 2 has no 64-bit page tables"),
        (
            &["--program", "1", "--addresses", "physical"],
            "has virtual addresses",
        ),
    ] {
        let complaint = complaint(arguments.iter().chain(options), 2);
        assert!(complaint.contains(reason), "{complaint}");
    }
    assert!(!refused.exists());
}

#[test]
fn without_a_kernel_half_addresses_are_physical_and_virtual_ones_are_refused() {
    let mut identity = Machine::new();
    identity.levels = 4;
    PageTables::new(4, TABLES).map(&mut identity, 0, 0, LARGE_PAGE);
    identity.roots = [TABLES; 2];
    for machine in [Machine::new(), identity] {
        let (directory, core, contents) = extract(&machine, &[]);
        assert_eq!(contents["addresses"], "physical");
        assert_eq!(Core::read(&core).at(HIGH, MIB), Some(&machine.high[..]));
        let file = directory.path().join("vm.vmsnap");
        let refused = directory.path().join("refused.core");
        let arguments = [
            "restore",
            text(&file),
            "--elf-core",
            text(&refused),
            "--addresses",
            "virtual",
        ];
        let complaint = complaint(arguments, 2);
        assert!(complaint.contains("no virtual addresses"), "{complaint}");
        assert!(!refused.exists());
    }
}

#[test]
fn physical_addresses_can_be_chosen() {
    let (machine, _) = machine(4);
    let (_directory, core, contents) = extract(&machine, &["--addresses", "physical"]);
    let core = Core::read(&core);
    assert_eq!(contents["addresses"], "physical");
    assert_eq!(core.segments().count(), 2);
    assert!(
        core.segments()
            .all(|header| header.virtual_address == header.guest_address)
    );
    assert_eq!(core.at(CODE as u64, 7), Some(&machine.low[CODE..CODE + 7]));
}

#[test]
fn the_kernels_own_note_is_in_the_core() {
    let (mut machine, _) = machine(4);
    let content = vmcoreinfo("6.1.0-9-amd64", TABLES, PHYSICAL_BASE);
    assert!(content.len() > 4096, "it goes on in a second page");
    put_note(&mut machine, NOTE, &content);
    let (directory, core, contents) = extract(&machine, &[]);
    let notes = Core::read(&core).notes();
    let note = notes.iter().find(|note| note.name == "VMCOREINFO").unwrap();
    assert_eq!((note.kind, note.content.as_slice()), (0, content.as_bytes()));
    assert_eq!(contents["linux"]["osrelease"], "6.1.0-9-amd64");
    assert_eq!(contents["linux"]["kernel_offset"], KERNEL_OFFSET);
    assert_eq!(contents["linux"]["build_id"], "00ff00ff");
    let file = directory.path().join("vm.vmsnap");
    let seen = run(["restore", text(&file), "--elf-core", text(&core)], 0);
    assert!(
        seen.contains("kernel: Linux 6.1.0-9-amd64, KASLR offset 0x80000"),
        "{seen}"
    );
}

#[test]
fn a_note_of_a_kernel_that_ran_before_is_not_believed() {
    let (mut machine, _) = machine(4);
    let stale = vmcoreinfo("5.10.0-gone", TABLES + PAGE, PHYSICAL_BASE - 0x5000);
    put_note(&mut machine, NOTE, &stale);
    let (_directory, core, contents) = extract(&machine, &[]);
    assert_eq!(contents["linux"], Json::Null);
    assert!(
        Core::read(&core)
            .notes()
            .iter()
            .all(|note| note.name != "VMCOREINFO")
    );
    put_note(
        &mut machine,
        NOTE + 4 * PAGE,
        &vmcoreinfo("6.1.0", TABLES, PHYSICAL_BASE),
    );
    let (_directory, _core, contents) = extract(&machine, &[]);
    assert_eq!(contents["linux"]["osrelease"], "6.1.0");
}

#[test]
fn the_kernels_page_table_is_followed_where_programs_do_not_see_it() {
    let (mut machine, mut kernel) = machine(4);
    kernel.map(&mut machine, 0xffff_c900_0000_0000, HIGH, PAGE);
    let entry = 0xffff_fe00_0000_0000;
    let mut program = PageTables::new(4, OTHER_TABLES);
    program.map(&mut machine, entry, HIGH + PAGE, PAGE);
    machine.roots = [OTHER_TABLES; 2];
    put_note(&mut machine, NOTE, &vmcoreinfo("6.1.0", TABLES, PHYSICAL_BASE));
    let (_directory, core, contents) = extract(&machine, &[]);
    assert_eq!(contents["linux"]["osrelease"], "6.1.0");
    assert_eq!(
        Core::read(&core).kernel_segments(),
        [
            (0xffff_c900_0000_0000, HIGH, PAGE),
            (entry, HIGH + PAGE, PAGE),
            (TEXT, 0, LARGE_PAGE)
        ]
    );
}

#[test]
fn every_vcpu_has_a_thread_and_a_note_of_its_control_registers() {
    let (machine, _) = machine(5);
    let (_directory, core, _) = extract(&machine, &[]);
    let notes = Core::read(&core).notes();
    let kinds: Vec<_> = notes.iter().map(|note| (note.name.as_str(), note.kind)).collect();
    let thread = [("CORE", 1), ("CORE", 2)];
    assert_eq!(kinds, [thread, thread, [("QEMU", 0), ("QEMU", 0)]].concat());
    let word =
        |note: usize, at: usize| u64::from_le_bytes(notes[note].content[at..at + 8].try_into().unwrap());
    // Of QEMUCPUState: RIP, CR3, CR4.
    assert_eq!((word(4, 136), word(5, 136)), (CODE as u64, 0x2000));
    assert_eq!((word(4, 416), word(4, 424)), (TABLES, 0x1020));
    assert_eq!(notes[4].content.len(), 440);
}

#[test]
fn gdb_finds_each_vcpu_and_the_kernels_code_at_its_virtual_address() {
    let (mut machine, _) = machine(4);
    machine.rip = TEXT + CODE as u64;
    let (_directory, core, _) = extract(&machine, &[]);
    let commands = [
        "info threads",
        "x/2i $pc",
        "p/x $fs_base",
        "x/bx 0x8000000000480000",
        "thread 2",
        "p $pc",
        "x/bx 0x480000",
    ];
    let Some(seen) = gdb(&core, &commands) else { return };
    for expected in [
        "0xffffffff81001000",
        "mov    $0x1,%eax",
        "jmp    0xffffffff81001005",
        "0xffff888000000000",
        "0x8000000000480000:\t0xa5",
        "(void (*)()) 0x2000",
    ] {
        assert!(seen.contains(expected), "no {expected:?} in\n{seen}");
    }
    assert!(
        !seen.contains("\n0x480000:\t0x"),
        "physical memory is taken for that of a program:\n{seen}"
    );
}

#[test]
fn page_tables_that_lead_in_circles_or_nowhere_are_bounded() {
    // The root is its own table on every level and its own page on the last.
    let mut circle = Machine::new();
    circle.levels = 5;
    for entry in 0..512 {
        set_entry(&mut circle, TABLES, entry, TABLES | 3);
    }
    // Noise as page tables.
    let mut noise = Machine::new();
    noise.levels = 4;
    // Tables and pages outside memory, and a large page where there is none.
    let mut outside = Machine::new();
    outside.levels = 4;
    for (entry, target) in (256..512).zip([0x20_0003, 0x000f_ffff_ffff_f003, 0xfee0_0083].iter().cycle()) {
        set_entry(&mut outside, TABLES, entry, *target);
    }
    for (machine, roots, is_bounded) in [
        (&mut circle, [TABLES; 2], true),
        (&mut noise, [MIB as u64, MIB as u64 + PAGE], false),
        (&mut outside, [TABLES, 0x000f_ffff_ffff_f000], false),
    ] {
        machine.roots = roots;
        let (_directory, core, contents) = extract(machine, &[]);
        let core = Core::read(&core);
        assert_eq!(contents["page_tables_complete"], !is_bounded);
        assert!(core.headers.len() < 0xffff);
        assert_eq!(core.kernel_segments().len() as u64, contents["virtual_segments"]);
        assert!(
            core.headers
                .iter()
                .all(|header| header.offset + header.file_bytes <= core.len()),
            "a segment is outside the file"
        );
    }
}

#[test]
fn more_runs_than_an_elf_header_can_count_lose_the_shortest() {
    let (mut machine, mut tables) = machine(4);
    // One table of pages in reverse order, at 256 places: 131072 runs of one page.
    let reversed = 0xffff_c900_0000_0000;
    for page in 0..512 {
        tables.map(&mut machine, reversed + page * PAGE, (511 - page) * PAGE, PAGE);
    }
    let (table, directory_table) = (
        tables.table(&mut machine, reversed, 1),
        tables.table(&mut machine, reversed, 2),
    );
    for place in 1..256 {
        let address = reversed + place * LARGE_PAGE;
        set_entry(&mut machine, directory_table, slot(address, 2), table | 3);
    }
    let (_directory, core, contents) = extract(&machine, &[]);
    let core = Core::read(&core);
    assert_eq!(core.headers.len(), 0xfffe);
    assert_eq!(contents["virtual_segments"], 0xfffe - 3);
    assert_eq!(contents["omitted_bytes"], (131_072 + 1 - (0xfffe - 3)) * PAGE);
    assert_eq!(
        core.at(TEXT, 2 * MIB),
        Some(&machine.low[..]),
        "the long run stays"
    );
}
