//! `snapvm restore`: brings a machine back from a snapshot and runs it in the foreground.

use std::path::Path;

use anyhow::Context;
use snapshot::{
    DeviceOverrides, DiskError, DisksRestore, KnownFingerprints, RestoreOptions, restore_with_progress,
};

use super::runner;
use crate::cli::{RestoreArgs, RestoreDisks};
use crate::description::{MachineDescription, console_output, serial_output};
use crate::outcome::{Outcome, one_line};
use crate::progress::RestoreBar;
use crate::server::{Host, Vm};
use crate::values::by_id;

/// `snapvm restore`.
pub fn run(args: &RestoreArgs) -> anyhow::Result<Outcome> {
    let overrides = overrides(args)?;
    let socket = runner::bind(args.machine.api_sock.as_deref())?;
    let fingerprints = KnownFingerprints::default();
    let options = RestoreOptions {
        serial: serial_output(&args.machine.serial),
        backing: args.machine.memory_backing.into(),
        transparent_huge_pages: !args.machine.no_thp,
        paused: args.paused,
        advance_clock: args.advance_clock,
        devices: overrides,
        disks: match args.disks {
            RestoreDisks::Overlay => DisksRestore::Overlay,
            RestoreDisks::InPlace => DisksRestore::InPlace,
        },
        check_disks: args.check_disks,
        fingerprints: fingerprints.clone(),
        ignore_cpu_features: args.ignore_cpu_features,
        ..RestoreOptions::default()
    };
    let bar = RestoreBar::new();
    let (machine, report) = restore_with_progress(&args.file, &options, &|progress| bar.show(progress))
        .map_err(|error| with_advice(error, &args.file))?;
    bar.finish();
    tracing::info!(?report, "restored");
    let name = if args.machine.name.is_empty() {
        report.vm_name
    } else {
        args.machine.name.clone()
    };
    let serial = args.machine.serial.clone();
    let description = MachineDescription {
        memory_backing: args.machine.memory_backing,
        thp: !args.machine.no_thp,
        ..MachineDescription::of_restored(&machine, report.memory_bytes, name, serial)
    };
    let description = description
        .with_absolute_paths()
        .context("resolving relative paths")?;
    if let Some(path) = &args.machine.api_sock {
        runner::announce(path);
    }
    let mut vm = Vm::new(machine, description);
    vm.fingerprints = fingerprints;
    runner::run_to_end(&Host::of(vm), socket)
}

/// Adds what the caller can do, where that is a flag.
fn with_advice(error: snapshot::Error, file: &Path) -> anyhow::Error {
    let advice = match &error {
        snapshot::Error::Disk {
            id,
            source: DiskError::NotKept,
        } => format!("give the disk as it was by --disk {id}=FILE"),
        snapshot::Error::Disk {
            source: DiskError::Missing { .. },
            ..
        } => format!("put it beside {}", file.display()),
        snapshot::Error::Disk {
            source: DiskError::Exists { .. },
            ..
        } => "remove it, or choose another place".to_owned(),
        snapshot::Error::Disk {
            source: DiskError::NotInPlace { .. },
            ..
        } => "leave out --disks in-place".to_owned(),
        _ => return error.into(),
    };
    anyhow::anyhow!("{}; {advice}", one_line(&error.into()))
}

fn overrides(args: &RestoreArgs) -> anyhow::Result<DeviceOverrides> {
    Ok(DeviceOverrides {
        disks: by_id("--disk", &args.disk)?,
        nets: by_id("--net", &args.nets)?,
        vsock_uds: args.vsock_uds.clone(),
        vsock_cid: args.vsock_cid,
        console: args.console.as_ref().map(console_output),
    })
}
