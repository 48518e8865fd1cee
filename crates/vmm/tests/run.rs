//! Guests that run to their end, and how that end is told.

mod support;

use support::payloads;
use support::{boot, config, end_of, kvm_is_here, run, wait_for_heartbeats, wait_for_life};
use vmm::{
    Backing, CrashReport, Error, ErrorKind, Machine, MachineConfig, RunState, SerialOutput, StopReason,
};

#[test]
fn a_kernel_is_entered_with_its_start_info_and_ends_by_the_debug_exit_port() {
    if !kvm_is_here() {
        return;
    }
    let serial = tempfile::NamedTempFile::new().unwrap();
    for backing in [Backing::Anonymous, Backing::Memfd] {
        let config = MachineConfig {
            cmdline: "the command line\u{7e}".into(),
            serial: SerialOutput::File(serial.path().to_owned()),
            backing,
            ..config(payloads::hello())
        };
        assert_eq!(run(&config), StopReason::DebugExit { code: 0x2a });
    }
    assert_eq!(
        std::fs::read(serial.path()).unwrap(),
        b"ok the command line~ok the command line~"
    );
}

#[test]
fn a_kernel_file_boots_like_its_bytes() {
    if !kvm_is_here() {
        return;
    }
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), support::elf(payloads::hello())).unwrap();
    let kernel = Some(vmm::Kernel::File(file.path().to_owned()));
    assert_eq!(
        run(&MachineConfig {
            kernel,
            ..config(&[])
        }),
        StopReason::DebugExit { code: 0x2a }
    );
}

#[test]
fn a_reset_and_a_triple_fault_end_the_machine() {
    if !kvm_is_here() {
        return;
    }
    assert_eq!(run(&config(payloads::reset())), StopReason::Reset);
    assert_eq!(run(&config(payloads::triple_fault())), StopReason::TripleFault);
}

#[test]
fn the_acpi_registers_switch_off_and_reset() {
    if !kvm_is_here() {
        return;
    }
    let with = |cmdline: &str| MachineConfig {
        cmdline: cmdline.into(),
        ..config(payloads::power())
    };
    // '4' is the enabled sleep type 5; the reset register takes 1 alone, which no printable character is.
    assert_eq!(run(&with("40")), StopReason::PowerOff);
    for ignored in ["T0", "42", "41"] {
        let machine = boot(&with(ignored));
        machine.resume().unwrap();
        support::wait_for_life(&machine);
        assert_eq!(machine.state(), RunState::Running, "{ignored}");
    }
}

#[test]
fn a_guest_that_enters_the_firmware_resets_the_machine() {
    if !kvm_is_here() {
        return;
    }
    assert_eq!(run(&config(payloads::enter_firmware())), StopReason::Reset);
}

#[test]
fn a_halted_guest_is_neither_ended_nor_in_the_way_of_a_pause() {
    if !kvm_is_here() {
        return;
    }
    let machine = boot(&config(payloads::halt()));
    machine.resume().unwrap();
    wait_for_life(&machine);
    for _ in 0..10 {
        machine.pause().unwrap();
        assert_eq!(machine.state(), RunState::Paused);
        machine.resume().unwrap();
        assert_eq!(machine.state(), RunState::Running);
    }
    machine.stop();
    assert_eq!(machine.state(), RunState::Stopped(StopReason::Requested));
}

#[test]
fn an_ended_machine_refuses_everything_and_says_why() {
    if !kvm_is_here() {
        return;
    }
    let machine = boot(&config(payloads::reset()));
    machine.resume().unwrap();
    assert_eq!(end_of(&machine), StopReason::Reset);
    let refused = [
        machine.resume(),
        machine.pause(),
        machine.save_state().map(|_| ()),
    ];
    for result in refused {
        let error = result.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidRunState);
        assert!(
            error
                .to_string()
                .ends_with("a machine that is stopped (reset by the guest)"),
            "{error}"
        );
    }
    machine.stop();
    assert_eq!(
        machine.state(),
        RunState::Stopped(StopReason::Reset),
        "the first reason stays"
    );
}

fn crash_of(program: &[u8]) -> Option<CrashReport> {
    match run(&config(program)) {
        StopReason::Crashed(report) => Some(*report),
        StopReason::DebugExit { code: 1 } => None,
        other => panic!("{other:?}"),
    }
}

#[test]
fn execution_without_memory_is_reported_with_registers() {
    if !kvm_is_here() {
        return;
    }
    let report = crash_of(payloads::lost()).unwrap();
    let regs = report.regs.unwrap();
    assert_eq!((report.vcpu, report.suberror), (0, Some(1)));
    assert_eq!((regs.rip, regs.rcx), (0xd000_0000, 0x1234));
    assert!(report.instruction.is_empty(), "there are no bytes to show");
    let line = report.to_string();
    assert!(
        line.contains("emulation failure (suberror 1) at rip 0xd0000000"),
        "{line}"
    );
    assert!(!line.contains('\n'), "{line}");
    let full = format!("{report:#}");
    assert!(
        full.contains("rcx 0000000000001234") && full.contains("cs  0008 base 0x0"),
        "{full}"
    );
}

#[test]
fn an_instruction_that_the_emulator_does_not_know_is_reported_with_bytes_and_hint() {
    if !kvm_is_here() {
        return;
    }
    let Some(report) = crash_of(payloads::sse()) else {
        eprintln!("SKIPPED: this KVM does not execute guests in its instruction emulator");
        return;
    };
    assert_eq!(report.instruction[..3], [0x0f, 0x58, 0xc1], "addps xmm0, xmm1");
    assert_eq!(report.regs.unwrap().rdi, 0x5a5a);
    let hint = report.hint.unwrap();
    assert!(hint.contains("unmodified kernels cannot run"), "{hint}");
}

#[test]
fn a_machine_without_a_kernel_or_with_other_memory_is_refused() {
    if !kvm_is_here() {
        return;
    }
    let config = config(payloads::halt());
    let memory = || vmm::create_guest_memory(&config).unwrap();
    let no_kernel = MachineConfig {
        kernel: None,
        ..config.clone()
    };
    assert!(matches!(
        Machine::boot(&no_kernel, memory()),
        Err(Error::InvalidConfig { field: "kernel", .. })
    ));
    let larger = MachineConfig {
        memory_bytes: 8 << 20,
        ..config.clone()
    };
    let error = Machine::boot(&larger, memory()).unwrap_err();
    assert!(
        matches!(
            error,
            Error::Topology {
                part: "memory map",
                ..
            }
        ),
        "{error}"
    );
    let nowhere = SerialOutput::File("/nonexistent/serial.log".into());
    let error = Machine::boot(
        &MachineConfig {
            serial: nowhere,
            ..config.clone()
        },
        memory(),
    )
    .unwrap_err();
    assert!(error.to_string().contains("/nonexistent/serial.log"), "{error}");
}

#[test]
fn serial_input_interrupts_the_guest() {
    if !kvm_is_here() {
        return;
    }
    let machine = boot(&MachineConfig {
        cmdline: "s".into(),
        ..config(payloads::interrupts())
    });
    machine.resume().unwrap();
    wait_for_life(&machine);
    assert_eq!(machine.send_serial_input(&[0x77]).unwrap(), 1);
    assert_eq!(end_of(&machine), StopReason::DebugExit { code: 0x77 });
}

#[test]
fn memory_beyond_the_hole_is_there() {
    if !kvm_is_here() {
        return;
    }
    let config = MachineConfig {
        memory_bytes: (3 << 30) + (64 << 20),
        ..config(payloads::high_memory())
    };
    assert_eq!(run(&config), StopReason::DebugExit { code: 0x4d });
}

#[test]
fn dropping_a_running_machine_ends_it() {
    if !kvm_is_here() {
        return;
    }
    for program in [payloads::count(), payloads::halt()] {
        let machine = boot(&MachineConfig {
            cpus: 3,
            ..config(program)
        });
        machine.resume().unwrap();
        wait_for_life(&machine);
        drop(machine);
    }
}

#[test]
fn a_machine_can_be_used_from_several_threads() {
    if !kvm_is_here() {
        return;
    }
    let machine = boot(&config(payloads::count()));
    machine.resume().unwrap();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..50 {
                    machine.pause().unwrap();
                    let _ = machine.save_state();
                    machine.resume().unwrap();
                }
            });
        }
    });
    assert_eq!(machine.state(), RunState::Running);
    wait_for_heartbeats(&machine, 10);
}
