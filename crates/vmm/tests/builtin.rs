//! The built-in guest on real KVM: every page is what its oracle computes, whenever it is stopped.

mod support;

use std::path::Path;

use support::{boot, clone_of, copy_of_memory, kvm_is_here, wait_until};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm::builtin::{self, BuiltinOptions, Mailbox, Oracle, OracleReport, PageKind, VcpuRegisters, WriteRate};
use vmm::{Kernel, Machine, MachineConfig, Regs, RestoreOptions, SerialOutput};

const MIB: u64 = 1 << 20;
/// Where the guest's working set begins, by physical address and as the guest maps it.
const WORKING_SET: u64 = 4 * MIB;
const WINDOW: u64 = 512 << 30;
const REP_MOVSQ: [u8; 3] = [0xf3, 0x48, 0xa5];

/// A machine of 16 MiB with a built-in guest that rewrites 4 MiB of it.
fn config(cpus: u32, options: BuiltinOptions) -> MachineConfig {
    let options = BuiltinOptions {
        working_set_bytes: Some(4 * MIB),
        ..options
    };
    MachineConfig {
        memory_bytes: 16 * MIB,
        cpus,
        kernel: Some(Kernel::Builtin(options)),
        ..MachineConfig::default()
    }
}

fn registers(machine: &Machine) -> Vec<Regs> {
    machine
        .save_state()
        .unwrap()
        .vcpus
        .iter()
        .map(|vcpu| vcpu.regs)
        .collect()
}

fn oracle(machine: &Machine) -> Oracle {
    let registers: Vec<VcpuRegisters> = registers(machine).iter().map(VcpuRegisters::from).collect();
    Oracle::of_memory(machine.memory(), &registers).unwrap()
}

/// Compares all memory of a paused machine.
fn check(machine: &Machine) -> OracleReport {
    oracle(machine).check_memory(machine.memory()).unwrap()
}

fn assert_clean(machine: &Machine, when: &str) {
    let report = check(machine);
    let shown: Vec<_> = report.mismatches.iter().map(ToString::to_string).collect();
    assert!(
        report.is_clean(),
        "{when}: {} pages differ: {shown:#?}",
        report.mismatch_count
    );
}

fn mailbox(machine: &Machine, cpu: u32) -> Mailbox {
    Mailbox::read(machine.memory(), cpu).unwrap()
}

/// Waits until each vCPU has done `steps` more.
fn wait_for_steps(machine: &Machine, cpus: u32, steps: u64) {
    for cpu in 0..cpus {
        // The counter starts above zero: the loader has written round 0.
        wait_until("the first steps", || mailbox(machine, cpu).step > 0);
        let goal = mailbox(machine, cpu).step + steps;
        wait_until("steps", || mailbox(machine, cpu).step >= goal);
    }
}

/// Returns the complete lines that the guest has written.
fn lines(serial: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(serial).unwrap();
    let complete = text.rfind('\n').map_or("", |end| &text[..end]);
    complete.lines().map(str::to_owned).collect()
}

/// Runs a machine on until its only vCPU is about to begin the copy of a step, `words` long.
fn stop_before_a_copy(machine: &Machine, words: u64) {
    wait_until("a stop before a copy", || {
        machine.resume().unwrap();
        machine.pause().unwrap();
        let regs = registers(machine)[0];
        let mut instruction = [0; 3];
        machine
            .memory()
            .read_slice(&mut instruction, GuestAddress(regs.rip))
            .unwrap();
        instruction == REP_MOVSQ && regs.rcx == words
    });
}

/// Copies some more words, as a processor does that is interrupted inside a repeated instruction.
fn copy_words(memory: &GuestMemoryMmap, regs: &mut Regs, count: u64) {
    for _ in 0..count {
        let word: u64 = memory.read_obj(GuestAddress(regs.rsi)).unwrap();
        memory
            .write_obj(word, GuestAddress(regs.rdi - WINDOW + WORKING_SET))
            .unwrap();
        (regs.rsi, regs.rdi, regs.rcx) = (regs.rsi + 8, regs.rdi + 8, regs.rcx - 1);
    }
}

#[test]
fn every_page_is_as_computed_at_many_moments() {
    if !kvm_is_here() {
        return;
    }
    let rates = [WriteRate::FlatOut, WriteRate::PagesPerSecond(2000)];
    let runs = [1, 2].into_iter().flat_map(|cpus| rates.map(|rate| (cpus, rate)));
    for ((cpus, rate), words_per_step) in runs.zip([8, 64, 1, 512]) {
        let options = BuiltinOptions {
            rate,
            words_per_step,
            ..BuiltinOptions::default()
        };
        let machine = boot(&config(cpus, options));
        assert_clean(&machine, "before the first instruction");
        for stop in 0..60_u64 {
            machine.resume().unwrap();
            // From the first instructions of the boot to some hundred steps: uneven on purpose.
            for _ in 0..stop * 7919 % 9973 * 10 {
                std::hint::spin_loop();
            }
            machine.pause().unwrap();
            assert_clean(&machine, &format!("{options:?}, {cpus} vCPUs, stop {stop}"));
        }
        machine.resume().unwrap();
        wait_for_steps(&machine, cpus, 100);
        for cpu in 0..cpus {
            assert_eq!(mailbox(&machine, cpu).bad_stamps, 0);
        }
    }
}

#[test]
fn a_page_half_written_is_computed_to_the_word_and_completed_after_a_restore() {
    if !kvm_is_here() {
        return;
    }
    // An emulating KVM copies all before it lets the vCPU go; a processor need not. So the interruption is
    // made in the saved state.
    let config = config(
        1,
        BuiltinOptions {
            words_per_step: 32,
            ..BuiltinOptions::default()
        },
    );
    let machine = boot(&config);
    stop_before_a_copy(&machine, 31);
    for words in [0, 1, 20, 30, 31] {
        let mut state = machine.save_state().unwrap();
        let memory = copy_of_memory(&config, &machine);
        let regs = &mut state.vcpus[0].regs;
        copy_words(&memory, regs, words);
        let when = format!("{words} words into the copy");
        let oracle = Oracle::of_memory(&memory, &[VcpuRegisters::from(&*regs)]).unwrap();
        assert!(oracle.check_memory(&memory).unwrap().is_clean(), "{when}");

        let one_off = VcpuRegisters {
            rcx: regs.rcx ^ 1,
            ..VcpuRegisters::from(&*regs)
        };
        assert!(
            Oracle::of_memory(&memory, &[one_off]).is_err(),
            "{when}: another count is refused"
        );

        let restored = Machine::restore(&config, memory, &state, &RestoreOptions::default()).unwrap();
        restored.resume().unwrap();
        wait_for_steps(&restored, 1, 4 * MIB / 4096 + 1);
        restored.pause().unwrap();
        assert_clean(&restored, &when);
        assert_eq!(mailbox(&restored, 0).bad_stamps, 0, "{when}");
    }
}

#[test]
fn one_changed_byte_in_any_kind_of_page_is_found() {
    if !kvm_is_here() {
        return;
    }
    let machine = boot(&config(1, BuiltinOptions::default()));
    machine.resume().unwrap();
    wait_for_steps(&machine, 1, 50);
    machine.pause().unwrap();
    let pages = [
        (0x10_0000, PageKind::Control),
        (0x1f_f000, PageKind::Control),
        (WORKING_SET + 12 * 4096, PageKind::WorkingSet { cpu: 0, step: 0 }),
        (15 * MIB, PageKind::Unused),
    ];
    for (gpa, kind) in pages {
        for offset in [0, 2047, 4095] {
            let address = GuestAddress(gpa + offset);
            let byte: u8 = machine.memory().read_obj(address).unwrap();
            machine.memory().write_obj(!byte, address).unwrap();
            let report = check(&machine);
            assert_eq!(report.mismatch_count, 1);
            let found = report.mismatches[0];
            assert_eq!((found.gpa, found.offset as u64), (gpa, offset / 8 * 8));
            assert_eq!(std::mem::discriminant(&found.kind), std::mem::discriminant(&kind));
            machine.memory().write_obj(byte, address).unwrap();
        }
    }
    assert_clean(&machine, "after the bytes are put back");
}

#[test]
fn registers_of_another_instant_do_not_fit_the_memory() {
    if !kvm_is_here() {
        return;
    }
    let machine = boot(&config(1, BuiltinOptions::default()));
    machine.resume().unwrap();
    wait_for_steps(&machine, 1, 20);
    machine.pause().unwrap();
    let earlier = oracle(&machine);
    machine.resume().unwrap();
    wait_for_steps(&machine, 1, 20);
    machine.pause().unwrap();
    let steps = oracle(&machine).steps()[0] - earlier.steps()[0];
    let differing = earlier.check_memory(machine.memory()).unwrap().mismatch_count;
    // The step that was under way at either instant may count on either side.
    assert!(
        (steps - 1..=steps + 1).contains(&differing),
        "{differing} pages after {steps} steps"
    );
}

#[test]
fn the_guest_finds_a_page_that_was_changed_behind_its_back() {
    if !kvm_is_here() {
        return;
    }
    let serial = tempfile::NamedTempFile::new().unwrap();
    let machine = boot(&MachineConfig {
        serial: SerialOutput::File(serial.path().to_owned()),
        ..config(
            1,
            BuiltinOptions {
                words_per_step: 512,
                ..BuiltinOptions::default()
            },
        )
    });
    machine
        .memory()
        .write_obj(0x5555_u64, GuestAddress(WORKING_SET + 5 * 4096))
        .unwrap();
    machine.resume().unwrap();
    let report = || {
        lines(serial.path())
            .into_iter()
            .find(|line| line.contains(" BAD step "))
    };
    wait_until("the guest's report", || report().is_some());
    assert_eq!(mailbox(&machine, 0).bad_stamps, 1);
    let report = report().unwrap();
    assert!(report.contains(" found 0000000000005555 expected 0"), "{report}");
}

#[test]
fn a_restored_guest_goes_on_and_finds_every_page_in_order() {
    if !kvm_is_here() {
        return;
    }
    for (cpus, rate) in [
        (1, WriteRate::FlatOut),
        (2, WriteRate::FlatOut),
        (2, WriteRate::PagesPerSecond(5000)),
    ] {
        let config = config(
            cpus,
            BuiltinOptions {
                rate,
                ..BuiltinOptions::default()
            },
        );
        let machine = boot(&config);
        machine.resume().unwrap();
        wait_for_steps(&machine, cpus, 200);
        machine.pause().unwrap();
        let restored = clone_of(&config, &machine);
        assert_clean(&restored, "before it goes on");
        restored.resume().unwrap();
        // More than a round, so that the guest itself has looked at every page.
        wait_for_steps(&restored, cpus, 4 * MIB / 4096 / u64::from(cpus) + 1);
        restored.pause().unwrap();
        assert_clean(&restored, "after a round");
        for cpu in 0..cpus {
            assert_eq!(mailbox(&restored, cpu).bad_stamps, 0);
        }
    }
}

#[test]
fn the_kernel_file_runs_the_same_guest_in_memory_that_nobody_filled() {
    if !kvm_is_here() {
        return;
    }
    let serial = tempfile::NamedTempFile::new().unwrap();
    let options = BuiltinOptions {
        working_set_bytes: Some(MIB),
        ..BuiltinOptions::default()
    };
    let image = builtin::elf(&options, 2, 16 * MIB).unwrap();
    let machine = boot(&MachineConfig {
        kernel: Some(Kernel::Image(image)),
        serial: SerialOutput::File(serial.path().to_owned()),
        ..config(2, options)
    });
    assert_eq!(builtin::detect(machine.memory()), Some(2));
    assert_clean(&machine, "before the first instruction");
    for _ in 0..10 {
        machine.resume().unwrap();
        wait_for_steps(&machine, 2, 30);
        machine.pause().unwrap();
        assert_clean(&machine, "under way");
    }
    machine.resume().unwrap();
    for start in ["cpu0 ready", "cpu1 ready", "cpu0 step ", "cpu1 step "] {
        wait_until(start, || {
            lines(serial.path()).iter().any(|line| line.starts_with(start))
        });
    }
    assert!(!lines(serial.path()).iter().any(|line| line.contains("BAD")));
}

#[test]
fn a_new_longest_gap_begins_when_asked() {
    if !kvm_is_here() {
        return;
    }
    let machine = boot(&config(1, BuiltinOptions::default()));
    machine.resume().unwrap();
    wait_for_steps(&machine, 1, 100);
    machine.pause().unwrap();
    // The comparison takes time, in which the guest makes no step.
    assert_clean(&machine, "during the gap");
    machine.resume().unwrap();
    wait_for_steps(&machine, 1, 100);
    let gap = mailbox(&machine, 0).longest_gap;
    assert!(gap > 0);
    wait_until("a shorter longest gap", || {
        Mailbox::reset_gap(machine.memory(), 0).unwrap();
        mailbox(&machine, 0).longest_gap < gap
    });
}

#[test]
fn memory_without_the_guest_is_told_apart() {
    let config = MachineConfig {
        memory_bytes: 16 * MIB,
        ..MachineConfig::default()
    };
    let memory = vmm::create_guest_memory(&config).unwrap();
    assert_eq!(builtin::detect(&memory), None);
    let error = Oracle::of_memory(&memory, &[VcpuRegisters::default()]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "no built-in guest: page 0x102000 is not its parameter page"
    );
}

#[test]
fn registers_that_no_point_of_the_program_allows_are_refused() {
    let config = MachineConfig {
        memory_bytes: 16 * MIB,
        ..MachineConfig::default()
    };
    let memory = vmm::create_guest_memory(&config).unwrap();
    builtin::load(&memory, 1, &BuiltinOptions::default()).unwrap();
    for (rip, refused) in [(0x10_0000, false), (0x10_0300, true), (0xfff0, false)] {
        let registers = VcpuRegisters {
            rip,
            r15: u64::MAX,
            ..VcpuRegisters::default()
        };
        let answer = Oracle::of_memory(&memory, &[registers]).map(|oracle| oracle.steps());
        assert_eq!(answer.is_err(), refused, "at {rip:#x}: {answer:?}");
    }
    let two = [VcpuRegisters::default(); 2];
    let error = Oracle::of_memory(&memory, &two).unwrap_err();
    assert_eq!(error.to_string(), "registers of 2 vCPUs for a guest with 1");
}
