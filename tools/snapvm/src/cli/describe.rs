//! From flags to the description that they stand for.

use super::{BuiltinArgs, RunArgs};
use crate::description::{self, Builtin, MachineDescription, Size};
use crate::values::devices::{name_disks, name_nets};

impl RunArgs {
    /// Returns the description in the file or in the flags.
    ///
    /// # Errors
    /// The file is no such description, or the flags make no sense together.
    pub fn description(&self) -> anyhow::Result<MachineDescription> {
        if let Some(path) = &self.config {
            return description::read(path);
        }
        let (devices, machine) = (&self.devices, &self.machine);
        let description = MachineDescription {
            name: machine.name.clone(),
            memory: Size(self.memory),
            cpus: self.cpus,
            cpu: self.cpu,
            kernel: self.kernel.clone(),
            initrd: self.initrd.clone(),
            cmdline: self.cmdline.clone(),
            memory_backing: machine.memory_backing,
            thp: !machine.no_thp,
            serial: machine.serial.clone(),
            console: devices.console.clone(),
            rng: !devices.no_rng,
            builtin: self.builtin.then(|| self.builtin_args.describe()),
            vsock: devices.vsock.as_ref().map(|vsock| vsock.0.clone()),
            balloon: devices.balloon.as_ref().map(|balloon| balloon.0.clone()),
            disks: name_disks(&devices.disks),
            nets: name_nets(&devices.nets),
        };
        description.validate().map_err(anyhow::Error::msg)?;
        Ok(description)
    }
}

impl BuiltinArgs {
    /// Returns the settings that were typed.
    #[must_use]
    pub fn describe(&self) -> Builtin {
        Builtin {
            working_set: self.working_set.map(Size),
            write_rate: self.write_rate,
            words: self.words,
            incompressible: self.incompressible,
            seed: self.seed,
        }
    }
}
