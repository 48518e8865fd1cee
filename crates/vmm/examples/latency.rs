//! Measures what a machine costs its owner: creating, pausing, saving, restoring.
//!
//! The guest is the built-in one, writing memory as fast as it can. Each figure is the median of the
//! stated number of trials, with the slowest in brackets.

use std::time::{Duration, Instant};

use vm_memory::{Bytes, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};
use vmm::builtin::BuiltinOptions;
use vmm::{Kernel, Machine, MachineConfig, RestoreOptions, VmState, create_guest_memory};

const BOOTS: usize = 10;
const PAUSES: usize = 100;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

fn main() -> Result<()> {
    if let Err(error) = std::fs::File::options().read(true).write(true).open("/dev/kvm") {
        eprintln!("SKIPPED: /dev/kvm: {error}");
        return Ok(());
    }
    for cpus in [1, 2] {
        measure(cpus)?;
    }
    Ok(())
}

fn measure(cpus: u32) -> Result<()> {
    let kernel = Some(Kernel::Builtin(BuiltinOptions::default()));
    let config = MachineConfig {
        cpus,
        memory_bytes: 64 << 20,
        kernel,
        ..MachineConfig::default()
    };
    println!("{cpus} vcpu, {} MiB", config.memory_bytes >> 20);

    let mut machine = None;
    let mut boots = Vec::new();
    for _ in 0..BOOTS {
        drop(machine.take());
        let memory = create_guest_memory(&config)?;
        let start = Instant::now();
        let created = Machine::boot(&config, memory)?;
        created.resume()?;
        boots.push(start.elapsed());
        machine = Some(created);
    }
    let machine = machine.ok_or("no machine")?;
    print("create, fill memory and start", &mut boots);

    let (mut pauses, mut saves, mut resumes) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..PAUSES {
        let start = Instant::now();
        machine.pause()?;
        pauses.push(start.elapsed());
        let start = Instant::now();
        machine.save_state()?;
        saves.push(start.elapsed());
        let start = Instant::now();
        machine.resume()?;
        resumes.push(start.elapsed());
        std::thread::sleep(Duration::from_millis(2)); // lets the guest get going again
    }
    print("pause", &mut pauses);
    print("save_state", &mut saves);
    print("resume", &mut resumes);

    machine.pause()?;
    let state = machine.save_state()?;
    let start = Instant::now();
    let parts = state.to_parts()?;
    let encode = start.elapsed();
    let bytes: usize = parts.iter().map(|part| part.cbor.len()).sum();
    let start = Instant::now();
    let state = VmState::from_parts(&parts)?;
    println!(
        "  state of {bytes} bytes: encode {encode:?}, decode {:?}",
        start.elapsed()
    );

    let mut restores = Vec::new();
    for _ in 0..BOOTS {
        let memory = copy_of(machine.memory(), create_guest_memory(&config)?)?;
        let start = Instant::now();
        let restored = Machine::restore(&config, memory, &state, &RestoreOptions::default())?;
        restored.resume()?;
        restores.push(start.elapsed());
    }
    print("restore and start, memory in place", &mut restores);
    Ok(())
}

fn copy_of(from: &GuestMemoryMmap, to: GuestMemoryMmap) -> Result<GuestMemoryMmap> {
    let mut bytes = Vec::new();
    for region in from.iter() {
        bytes.resize(usize::try_from(region.len())?, 0);
        from.read_slice(&mut bytes, region.start_addr())?;
        to.write_slice(&bytes, region.start_addr())?;
    }
    Ok(to)
}

fn print(what: &str, times: &mut [Duration]) {
    times.sort_unstable();
    if let (Some(median), Some(slowest)) = (times.get(times.len() / 2), times.last()) {
        println!("  {what}: {median:.1?} ({slowest:.1?}), {} trials", times.len());
    }
}
