//! What the tests share: guest programs as kernels, machines that run them, waiting with a limit.

#![allow(dead_code, reason = "each test binary uses its own part")]

pub mod payloads;

use std::time::{Duration, Instant};

use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};
use vmm::{
    Kernel, Machine, MachineConfig, RestoreOptions, RunState, StopReason, VmState, create_guest_memory,
};

use payloads::LOAD_ADDRESS;

/// How long a guest may take for what a test waits for; only a broken machine takes that long.
const PATIENCE: Duration = Duration::from_secs(30);

/// Tells whether KVM can be used; if not, says so.
pub fn kvm_is_here() -> bool {
    match std::fs::File::options().read(true).write(true).open("/dev/kvm") {
        Ok(_) => true,
        Err(error) => {
            eprintln!("SKIPPED: /dev/kvm: {error}");
            false
        }
    }
}

/// Wraps a program into an ELF file with a PVH entry note: file header, two program headers, note, program.
pub fn elf(program: &[u8]) -> Vec<u8> {
    const NOTE_AT: u32 = 64 + 2 * 56;
    const PROGRAM_AT: u32 = 0x100;
    let mut file = Vec::new();
    file.extend(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    file.extend([2u16, 62].map(u16::to_le_bytes).concat()); // executable, x86-64
    file.extend(1u32.to_le_bytes());
    file.extend([u64::from(LOAD_ADDRESS), 64, 0].map(u64::to_le_bytes).concat()); // entry, program headers, none
    file.extend(0u32.to_le_bytes());
    file.extend([64u16, 56, 2, 0, 0, 0].map(u16::to_le_bytes).concat());
    let len = program.len() as u64;
    let load = u64::from(LOAD_ADDRESS);
    for (kind, offset, address, len) in [(1u32, PROGRAM_AT, load, len), (4, NOTE_AT, 0, 20)] {
        file.extend([kind, 7].map(u32::to_le_bytes).concat());
        file.extend(
            [offset.into(), address, address, len, len, 4]
                .map(u64::to_le_bytes)
                .concat(),
        );
    }
    file.extend([4u32, 4, 18].map(u32::to_le_bytes).concat()); // sizes of name and value, XEN_ELFNOTE_PHYS32_ENTRY
    file.extend(b"Xen\0");
    file.extend(LOAD_ADDRESS.to_le_bytes());
    file.resize(PROGRAM_AT as usize, 0);
    file.extend(program);
    file
}

/// A small machine that is to run a program.
pub fn config(program: &[u8]) -> MachineConfig {
    MachineConfig {
        memory_bytes: 4 << 20,
        kernel: Some(Kernel::Image(elf(program))),
        ..MachineConfig::default()
    }
}

/// Creates the machine of a configuration.
pub fn boot(config: &MachineConfig) -> Machine {
    Machine::boot(config, create_guest_memory(config).unwrap()).unwrap()
}

/// Boots the machine, lets it run to its end, and says why it ended.
pub fn run(config: &MachineConfig) -> StopReason {
    let machine = boot(config);
    assert_eq!(machine.state(), RunState::Created);
    machine.resume().unwrap();
    let reason = end_of(&machine);
    assert_eq!(machine.state(), RunState::Stopped(reason.clone()));
    reason
}

/// Waits for the machine's end.
pub fn end_of(machine: &Machine) -> StopReason {
    machine.wait_timeout(PATIENCE).expect("the guest ends")
}

/// Waits until `condition` holds.
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "waited in vain for {what}");
        std::thread::sleep(Duration::from_micros(200));
    }
}

/// Waits until a guest that was just started has given its first sign of life; some give no other.
pub fn wait_for_life(machine: &Machine) {
    wait_until("a sign of life", || machine.heartbeat() > 0);
}

/// Waits until the guest has given `count` more signs of life.
pub fn wait_for_heartbeats(machine: &Machine, count: u64) {
    let goal = machine.heartbeat() + count;
    wait_until("signs of life", || {
        let reason = matches!(machine.state(), RunState::Stopped(_)).then(|| machine.state());
        assert!(reason.is_none(), "{reason:?}");
        machine.heartbeat() >= goal
    });
}

/// Reads a word of guest memory.
pub fn word(machine: &Machine, address: u64) -> u32 {
    machine.memory().read_obj(GuestAddress(address)).unwrap()
}

/// Writes a word of guest memory.
pub fn set_word(machine: &Machine, address: u64, value: u32) {
    machine.memory().write_obj(value, GuestAddress(address)).unwrap();
}

/// Returns fresh guest memory with the contents of a paused machine's.
pub fn copy_of_memory(config: &MachineConfig, machine: &Machine) -> GuestMemoryMmap {
    let copy = create_guest_memory(config).unwrap();
    let mut bytes = Vec::new();
    for region in machine.memory().iter() {
        bytes.resize(usize::try_from(region.len()).unwrap(), 0);
        machine
            .memory()
            .read_slice(&mut bytes, region.start_addr())
            .unwrap();
        copy.write_slice(&bytes, region.start_addr()).unwrap();
    }
    copy
}

/// Saves a paused machine and brings it back as a second one, by way of the encoded parts.
pub fn clone_of(config: &MachineConfig, machine: &Machine) -> Machine {
    let parts = machine.save_state().unwrap().to_parts().unwrap();
    let state = VmState::from_parts(&parts).unwrap();
    let memory = copy_of_memory(config, machine);
    Machine::restore(config, memory, &state, &RestoreOptions::default()).unwrap()
}
