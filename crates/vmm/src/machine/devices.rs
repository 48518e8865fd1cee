//! The devices of a machine: those that every machine has, and the virtio devices of its configuration.

use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};

use kvm_ioctls::VmFd;
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::EventFd;

use super::assembly::lock;
use super::virtio::VirtioDevices;
use crate::config::MachineConfig;
use crate::device::{Bus, DebugConsole, DebugExit, GenerationId, I8042, Power, Serial, SharedDevice};
use crate::error::{Error, Result};
use crate::layout::{
    DEBUG_CONSOLE_PORT, DEBUG_EXIT_PORT, DEBUG_EXIT_PORTS, EVENT_GSI, I8042_PORT, I8042_PORTS, POWER_PORT,
    POWER_PORTS, SERIAL_GSI, SERIAL_PORT, SERIAL_PORTS,
};

/// The devices, and direct ways to those that the machine's owner deals with.
pub(super) struct Devices {
    /// All of them, in the order of the topology.
    pub(super) topology: Vec<SharedDevice>,
    pub(super) serial: Arc<Mutex<Serial>>,
    pub(super) generation_id: Arc<Mutex<GenerationId>>,
    pub(super) heartbeat: Arc<AtomicU64>,
    pub(super) virtio: VirtioDevices,
}

/// How guest accesses reach the devices.
pub(super) struct Buses {
    pub(super) ports: Bus,
    pub(super) mmio: Bus,
}

impl Devices {
    /// Makes the devices, and connects them with `vm` and the buses.
    pub(super) fn new(config: &MachineConfig, vm: &VmFd, memory: &GuestMemoryMmap) -> Result<(Self, Buses)> {
        let serial = Serial::new(&config.serial)?;
        register_line(vm, serial.interrupt(), SERIAL_GSI)?;
        let serial = Arc::new(Mutex::new(serial));
        let generation_id = GenerationId::new(memory.clone())?;
        register_line(vm, generation_id.event(), EVENT_GSI)?;
        let generation_id = Arc::new(Mutex::new(generation_id));
        let console = DebugConsole::default();
        let heartbeat = console.counter();
        let placed: [(u64, u64, SharedDevice); 5] = [
            (
                SERIAL_PORT.into(),
                SERIAL_PORTS.into(),
                Arc::clone(&serial) as SharedDevice,
            ),
            (I8042_PORT, I8042_PORTS, Arc::new(Mutex::new(I8042::new()))),
            (DEBUG_CONSOLE_PORT, 1, Arc::new(Mutex::new(console))),
            (
                DEBUG_EXIT_PORT,
                DEBUG_EXIT_PORTS,
                Arc::new(Mutex::new(DebugExit::default())),
            ),
            (
                POWER_PORT.into(),
                POWER_PORTS.into(),
                Arc::new(Mutex::new(Power::default())),
            ),
        ];
        let (mut ports, mut mmio) = (Bus::default(), Bus::default());
        let mut topology = Vec::new();
        for (base, len, device) in placed {
            ports.insert(base, len, Arc::clone(&device));
            topology.push(device);
        }
        topology.push(Arc::clone(&generation_id) as SharedDevice);
        let virtio = VirtioDevices::new(config, vm, memory, &mut mmio)?;
        topology.extend(virtio.placed.iter().map(|(_, device)| Arc::clone(device)));
        let devices = Self {
            topology,
            serial,
            generation_id,
            heartbeat,
            virtio,
        };
        Ok((devices, Buses { ports, mmio }))
    }

    /// Pauses all devices, which are new and so have nothing to drain.
    pub(super) fn pause(&self) -> Result<()> {
        for device in &self.topology {
            let mut device = lock(device);
            device.pause().map_err(|source| Error::Device {
                name: device.name().to_owned(),
                source,
            })?;
        }
        Ok(())
    }

    /// Returns the names of the devices in topology order.
    pub(super) fn names(&self) -> Vec<String> {
        let name = |device: &SharedDevice| lock(device).name().to_owned();
        self.topology.iter().map(name).collect()
    }
}

/// Makes each signal of `event` an edge of an interrupt line.
pub(super) fn register_line(vm: &VmFd, event: &EventFd, gsi: u32) -> Result<()> {
    vm.register_irqfd(event, gsi).map_err(|source| Error::Kvm {
        operation: "KVM_IRQFD",
        source,
    })
}
