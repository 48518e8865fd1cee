//! Boots a Linux kernel and runs it until it switches its machine off, its serial port on standard output.
//!
//! ```text
//! boot --kernel vmlinuz [--initrd FILE] [--cmdline TEXT] [--memory MIB] [--cpus N] [--cpu host|x86-64-v2|x86-64-v3]
//!     [--disk RAW-FILE]...
//! ```

use std::process::ExitCode;

use vmm::{
    DevicesConfig, DiskConfig, Kernel, Machine, MachineConfig, SerialOutput, StopReason, create_guest_memory,
};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

fn main() -> Result<ExitCode> {
    let config = configuration(std::env::args().skip(1))?;
    if config.kernel.is_none() {
        eprintln!("SKIPPED: boot: no --kernel is given");
        return Ok(ExitCode::SUCCESS);
    }
    let machine = Machine::boot(&config, create_guest_memory(&config)?)?;
    machine.resume()?;
    let reason = machine.wait();
    println!("{reason:#}");
    Ok(match reason {
        StopReason::PowerOff | StopReason::Reset => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    })
}

/// Reads pairs of an option and its value.
fn configuration(mut arguments: impl Iterator<Item = String>) -> Result<MachineConfig> {
    let mut config = MachineConfig {
        serial: SerialOutput::Stdio,
        cmdline: "console=ttyS0".into(),
        devices: DevicesConfig::default(),
        ..MachineConfig::default()
    };
    while let Some(option) = arguments.next() {
        let value = arguments.next().ok_or("an option without a value")?;
        match option.as_str() {
            "--kernel" => config.kernel = Some(Kernel::File(value.into())),
            "--initrd" => config.initrd = Some(value.into()),
            "--cmdline" => config.cmdline = value,
            "--memory" => config.memory_bytes = value.parse::<u64>()? << 20,
            "--cpus" => config.cpus = value.parse()?,
            "--cpu" => config.cpu = value.parse()?,
            "--disk" => {
                let id = format!("disk{}", config.devices.disks.len());
                config.devices.disks.push(DiskConfig::new(id, value));
            }
            _ => return Err(format!("unknown option {option}").into()),
        }
    }
    Ok(config)
}
