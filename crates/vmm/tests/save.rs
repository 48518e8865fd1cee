//! Guests that are paused, saved and brought back.

mod support;

use std::collections::BTreeMap;

use support::payloads::{self, COUNTER, SMP_COUNTERS, SMP_STARTED};
use support::{
    boot, clone_of, config, copy_of_memory, end_of, kvm_is_here, set_word, wait_for_heartbeats, wait_until,
    word,
};
use vmm::{
    Error, ErrorKind, Machine, MachineConfig, RestoreOptions, RunState, StopReason, VcpuState, VmState,
};

const TSC_DEADLINE: u32 = 0x6e0;

fn paused_after(config: &MachineConfig, heartbeats: u64) -> Machine {
    let machine = boot(config);
    machine.resume().unwrap();
    wait_for_heartbeats(&machine, heartbeats);
    machine.pause().unwrap();
    machine
}

fn parts_of(machine: &Machine) -> Vec<vmm::StatePart> {
    machine.save_state().unwrap().to_parts().unwrap()
}

#[test]
fn nothing_moves_while_the_machine_is_paused_and_nothing_is_lost_over_hundreds_of_pauses() {
    if !kvm_is_here() {
        return;
    }
    let machine = boot(&config(payloads::count()));
    machine.resume().unwrap();
    for _ in 0..300 {
        wait_for_heartbeats(&machine, 1);
        machine.pause().unwrap();
        let (count, heartbeat) = (word(&machine, COUNTER), machine.heartbeat());
        let rax = machine.save_state().unwrap().vcpus[0].regs.rax;
        // At most one of the three steps of counting (register, memory, port) is under way.
        assert!(
            rax.abs_diff(count.into()) <= 1 && heartbeat.abs_diff(count.into()) <= 1,
            "{rax} {count} {heartbeat}"
        );
        assert_eq!((word(&machine, COUNTER), machine.heartbeat()), (count, heartbeat));
        machine.resume().unwrap();
    }
    assert_eq!(
        machine.state(),
        RunState::Running,
        "the guest found no difference"
    );
}

#[test]
fn a_restored_guest_goes_on_where_it_was_and_the_original_too() {
    if !kvm_is_here() {
        return;
    }
    let config = config(payloads::count());
    let machine = paused_after(&config, 100);
    let count = word(&machine, COUNTER);
    let copy = clone_of(&config, &machine);
    assert_eq!(copy.state(), RunState::Paused);
    assert_eq!(copy.heartbeat(), machine.heartbeat());
    for machine in [&machine, &copy] {
        set_word(machine, COUNTER + 4, count + 5000);
        machine.resume().unwrap();
        assert_eq!(
            end_of(machine),
            StopReason::DebugExit { code: 2 },
            "the guest compares at each step"
        );
        assert_eq!(word(machine, COUNTER), count + 5000);
        assert_eq!(
            machine.heartbeat(),
            u64::from(count) + 5000,
            "no port access is lost or repeated"
        );
    }
}

#[test]
fn a_chain_of_fifty_restores_loses_no_step() {
    if !kvm_is_here() {
        return;
    }
    let config = config(payloads::count());
    let mut machine = paused_after(&config, 1);
    for _ in 0..50 {
        machine = clone_of(&config, &machine);
        machine.resume().unwrap();
        wait_for_heartbeats(&machine, 1);
        machine.pause().unwrap();
    }
    assert_eq!(
        u64::from(word(&machine, COUNTER)).abs_diff(machine.heartbeat()),
        0
    );
}

#[test]
fn two_saves_of_one_pause_are_equal_and_those_of_two_pauses_are_not() {
    if !kvm_is_here() {
        return;
    }
    let machine = paused_after(&config(payloads::count()), 10);
    let first = parts_of(&machine);
    machine.pause().unwrap();
    assert_eq!(parts_of(&machine), first);
    machine.resume().unwrap();
    wait_for_heartbeats(&machine, 10);
    machine.pause().unwrap();
    assert_ne!(parts_of(&machine), first);
}

#[test]
fn a_running_machine_is_not_saved() {
    if !kvm_is_here() {
        return;
    }
    let machine = boot(&config(payloads::halt()));
    machine.save_state().unwrap();
    machine.resume().unwrap();
    let error = machine.save_state().unwrap_err();
    assert_eq!(error.to_string(), "cannot save a machine that is running");
}

/// What must come back unchanged: everything but the clocks, which go on.
fn without_clocks(mut state: VmState) -> VmState {
    state.vm.clock.clock_ns = 0;
    state.vm.clock.realtime_ns = 0;
    state.vm.clock.host_tsc = 0;
    state
        .vm
        .pit
        .channels
        .iter_mut()
        .for_each(|channel| channel.count_load_time = 0);
    for vcpu in &mut state.vcpus {
        vcpu.tsc_offset = None;
        vcpu.msrs.remove(&0x10);
        // The current count of the APIC timer.
        vcpu.lapic.0[0x390..0x394].fill(0);
    }
    state
}

#[test]
fn what_is_restored_is_what_was_saved_but_for_the_clocks() {
    if !kvm_is_here() {
        return;
    }
    for (program, cpus) in [(payloads::count(), 1), (payloads::smp(), 2)] {
        let config = MachineConfig {
            cpus,
            ..config(program)
        };
        let machine = paused_after(&config, 100);
        let saved = machine.save_state().unwrap();
        let restored = clone_of(&config, &machine).save_state().unwrap();
        assert!(
            restored.vm.clock.clock_ns >= saved.vm.clock.clock_ns,
            "time goes on"
        );
        assert!(restored.vcpus[0].msrs[&0x10] >= saved.vcpus[0].msrs[&0x10]);
        assert_eq!(without_clocks(restored), without_clocks(saved));
    }
}

#[test]
fn every_timer_goes_on_interrupting_after_a_restore() {
    if !kvm_is_here() {
        return;
    }
    for (source, name) in [("p", "PIT"), ("l", "local APIC"), ("d", "TSC deadline")] {
        let config = MachineConfig {
            cmdline: source.into(),
            ..config(payloads::interrupts())
        };
        let mut machine = paused_after(&config, 5);
        for _ in 0..30 {
            machine = clone_of(&config, &machine);
            let before = word(&machine, COUNTER);
            machine.resume().unwrap();
            wait_until(name, || word(&machine, COUNTER) >= before + 3);
            machine.pause().unwrap();
        }
    }
}

#[test]
fn a_deadline_that_passed_while_the_machine_was_paused_still_interrupts() {
    if !kvm_is_here() {
        return;
    }
    let config = MachineConfig {
        cmdline: "d".into(),
        ..config(payloads::interrupts())
    };
    for _ in 0..20 {
        let machine = paused_after(&config, 3);
        let state = machine.save_state().unwrap();
        // By now the deadline, some milliseconds ahead at most, is over.
        let memory = copy_of_memory(&config, &machine);
        drop(machine);
        let copy = Machine::restore(&config, memory, &state, &RestoreOptions::default()).unwrap();
        assert!(state.vcpus[0].msrs.contains_key(&TSC_DEADLINE));
        let before = word(&copy, COUNTER);
        copy.resume().unwrap();
        wait_until("the deadline's interrupt", || word(&copy, COUNTER) > before);
    }
}

#[test]
fn two_vcpus_start_pause_and_go_on_after_a_restore() {
    if !kvm_is_here() {
        return;
    }
    let config = MachineConfig {
        cpus: 2,
        ..config(payloads::smp())
    };
    let counters = |machine: &Machine| SMP_COUNTERS.map(|address| word(machine, address));
    let mut machine = paused_after(&config, 100);
    assert_eq!(word(&machine, SMP_STARTED), 1);
    for round in 0..20 {
        let before = counters(&machine);
        if round % 2 == 0 {
            machine = clone_of(&config, &machine);
        }
        machine.resume().unwrap();
        wait_until("both vcpus", || {
            counters(&machine)
                .iter()
                .zip(before)
                .all(|(now, before)| now.wrapping_sub(before) > 1000)
        });
        machine.pause().unwrap();
        assert_eq!(counters(&machine), counters(&machine));
    }
    let state = machine.save_state().unwrap();
    let apic_id = |vcpu: &VcpuState| vcpu.cpuid.iter().find(|leaf| leaf.function == 1).unwrap().ebx >> 24;
    assert_eq!(state.vcpus.iter().map(apic_id).collect::<Vec<_>>(), [0, 1]);
    assert_eq!(
        word(&machine, SMP_STARTED),
        1,
        "the second vcpu was not started again"
    );
}

#[test]
fn vcpus_that_wait_to_be_started_are_saved_as_such() {
    if !kvm_is_here() {
        return;
    }
    let config = MachineConfig {
        cpus: 4,
        ..config(payloads::count())
    };
    let machine = paused_after(&config, 10);
    let states: Vec<u32> = machine
        .save_state()
        .unwrap()
        .vcpus
        .iter()
        .map(|vcpu| vcpu.mp_state)
        .collect();
    assert_eq!(states, [0, 1, 1, 1]);
    let copy = clone_of(&config, &machine);
    copy.resume().unwrap();
    wait_for_heartbeats(&copy, 10);
}

#[test]
fn a_processor_without_a_feature_of_the_guest_is_refused_by_name() {
    if !kvm_is_here() {
        return;
    }
    let config = config(payloads::count());
    let machine = paused_after(&config, 10);
    let mut state = machine.save_state().unwrap();
    // No processor has both 3DNow! and AMX.
    for leaf in &mut state.vcpus[0].cpuid {
        match leaf.function {
            0x8000_0001 => leaf.edx |= 1 << 31,
            7 if leaf.index == 0 => leaf.edx |= 1 << 24,
            _ => {}
        }
    }
    state.platform.check_host().unwrap();
    state.platform.cpuid = state.vcpus[0].cpuid.clone();
    let early = state.platform.check_host().unwrap_err();
    let memory = || copy_of_memory(&config, &machine);
    let error = Machine::restore(&config, memory(), &state, &RestoreOptions::default()).unwrap_err();
    assert_eq!(
        error.to_string(),
        early.to_string(),
        "the platform part alone tells it as well"
    );
    assert_eq!(error.kind(), ErrorKind::Incompatible);
    let Error::MissingFeatures { missing } = &error else {
        panic!("{error}")
    };
    assert!(
        missing.contains(&"3dnow".to_owned()) || missing.contains(&"amx_tile".to_owned()),
        "{error}"
    );
    assert!(
        error.to_string().starts_with("this host's processor lacks "),
        "{error}"
    );

    let anyway = RestoreOptions {
        ignore_cpu_features: true,
        ..RestoreOptions::default()
    };
    Machine::restore(&config, memory(), &state, &anyway).unwrap();
}

#[test]
fn a_machine_of_another_shape_is_refused() {
    if !kvm_is_here() {
        return;
    }
    let config = config(payloads::count());
    let machine = paused_after(&config, 10);
    let state = machine.save_state().unwrap();
    let refusal = |config: &MachineConfig, state: &VmState| {
        let memory = vmm::create_guest_memory(config).unwrap();
        let error = Machine::restore(config, memory, state, &RestoreOptions::default()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Incompatible);
        error.to_string()
    };
    let larger = MachineConfig {
        memory_bytes: 8 << 20,
        ..config.clone()
    };
    assert_eq!(
        refusal(&larger, &state),
        "memory map of the saved machine: range 0x0+0x400000; of this one: range 0x0+0x800000"
    );
    let more = MachineConfig {
        cpus: 2,
        ..config.clone()
    };
    assert_eq!(
        refusal(&more, &state),
        "vcpus of the saved machine: 1; of this one: 2"
    );
    let mut reordered = state.clone();
    reordered.devices.swap(0, 1);
    assert!(refusal(&config, &reordered).starts_with("devices of the saved machine: i8042, serial0, "));
}

#[test]
fn states_that_kvm_refuses_are_errors() {
    if !kvm_is_here() {
        return;
    }
    let config = config(payloads::count());
    let machine = paused_after(&config, 10);
    let state = machine.save_state().unwrap();
    type Change = fn(&mut VcpuState);
    let changes: [(&str, Change); 5] = [
        ("KVM_SET_MP_STATE", |vcpu| vcpu.mp_state = 77),
        ("KVM_SET_SREGS", |vcpu| vcpu.sregs.cr4 = u64::MAX),
        ("KVM_SET_XSAVE", |vcpu| vcpu.xsave.0[512..520].fill(0xff)),
        ("KVM_SET_XCRS", |vcpu| vcpu.xcrs = BTreeMap::from([(0, 0)])),
        ("refused msr 0x12345", |vcpu| {
            vcpu.msrs = BTreeMap::from([(0x12345, 1)])
        }),
    ];
    for (told, change) in changes {
        let mut changed = state.clone();
        change(&mut changed.vcpus[0]);
        let memory = copy_of_memory(&config, &machine);
        let error = Machine::restore(&config, memory, &changed, &RestoreOptions::default()).unwrap_err();
        assert!(error.to_string().contains(told), "{told}: {error}");
    }
}

#[test]
fn a_device_state_that_is_wrong_is_told_with_the_devices_name() {
    if !kvm_is_here() {
        return;
    }
    let config = config(payloads::count());
    let machine = paused_after(&config, 10);
    let mut state = machine.save_state().unwrap();
    state.devices[0].version = 9;
    let memory = copy_of_memory(&config, &machine);
    let error = Machine::restore(&config, memory, &state, &RestoreOptions::default()).unwrap_err();
    assert_eq!(error.to_string(), "device serial0");
    assert_eq!(
        std::error::Error::source(&error).unwrap().to_string(),
        "state version 9, this device reads 1"
    );
}

#[test]
fn time_stamp_counters_of_all_vcpus_are_those_of_one_instant() {
    if !kvm_is_here() {
        return;
    }
    let config = MachineConfig {
        cpus: 4,
        ..config(payloads::count())
    };
    let machine = paused_after(&config, 10);
    for machine in [clone_of(&config, &machine), machine] {
        let state = machine.save_state().unwrap();
        let Some(offset) = state.vcpus[0].tsc_offset else {
            eprintln!("SKIPPED: this KVM does not tell offsets of time stamp counters");
            return;
        };
        for vcpu in &state.vcpus {
            assert_eq!(vcpu.tsc_offset, Some(offset), "vcpu {}", vcpu.id);
            assert_eq!(vcpu.msrs[&0x10], state.vcpus[0].msrs[&0x10], "vcpu {}", vcpu.id);
        }
    }
}
