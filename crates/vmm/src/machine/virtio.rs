//! The virtio devices of a machine: made as the configuration asks for them, placed and wired.
//!
//! Their order is part of a saved machine's identity: it gives each its place and its interrupt line.

use std::sync::{Arc, Mutex};

use kvm_ioctls::{IoEventAddress, VmFd};
use virtio::{
    Balloon, BalloonDevice, Block, ConsoleDevice, ConsoleInput, DiscardRoute, Disk, MmioTransport, Net,
    QUEUE_NOTIFY, Rng, VhostNet, VhostVsock, VirtioDevice, Vsock,
};
use vm_memory::GuestMemoryMmap;

use super::devices::register_line;
use crate::config::MachineConfig;
use crate::device::{Bus, DeviceError, SharedDevice, VirtioMmio};
use crate::error::{Error, Result};
use crate::layout::{MAX_VIRTIO_DEVICES, VIRTIO_STRIDE, VirtioSlot, virtio_slots};
use crate::memory::ranges_of;

/// The virtio devices, and direct ways to those that the machine's owner deals with.
#[derive(Default)]
pub(super) struct VirtioDevices {
    /// With their places, in the order of the topology.
    pub(super) placed: Vec<(VirtioSlot, SharedDevice)>,
    pub(super) disks: Vec<Disk>,
    pub(super) discard_route: DiscardRoute,
    pub(super) console: Option<ConsoleInput>,
    pub(super) balloon: Option<Balloon>,
}

/// Devices without a place, with their names.
type Unplaced = Vec<(String, Box<dyn VirtioDevice>)>;

impl VirtioDevices {
    /// Makes the devices, and connects them with `vm` and the bus.
    pub(super) fn new(
        config: &MachineConfig,
        vm: &VmFd,
        memory: &GuestMemoryMmap,
        mmio: &mut Bus,
    ) -> Result<Self> {
        let mut made = Self::default();
        let memory_bytes = ranges_of(memory).iter().map(|range| range.len_bytes).sum();
        let unplaced = made.make(config, memory_bytes)?;
        if unplaced.len() > MAX_VIRTIO_DEVICES {
            return Err(Error::InvalidConfig {
                field: "devices",
                rule: "must be at most 18 virtio devices, for each has its own interrupt line",
            });
        }
        for ((name, device), slot) in unplaced.into_iter().zip(virtio_slots(MAX_VIRTIO_DEVICES)) {
            let failed = device_error(&name);
            let transport = MmioTransport::new(name.clone(), device, memory.clone()).map_err(failed)?;
            connect(vm, &transport, slot)?;
            let device: SharedDevice = Arc::new(Mutex::new(VirtioMmio(transport)));
            mmio.insert(slot.address.into(), VIRTIO_STRIDE.into(), Arc::clone(&device));
            made.placed.push((slot, device));
        }
        Ok(made)
    }

    /// Makes every device, in the order of the topology.
    fn make(&mut self, config: &MachineConfig, memory_bytes: u64) -> Result<Unplaced> {
        let mut devices = Unplaced::new();
        let (opened, config) = (&config.opened_disks, &config.devices);
        for disk in &config.disks {
            let name = format!("virtio-blk-{}", disk.id);
            let disk = match opened.iter().find(|opened| opened.id() == disk.id) {
                Some(opened) => opened.clone(),
                None => Disk::open(disk).map_err(device_error(&name))?,
            };
            devices.push((name, Box::new(Block::new(disk.clone()))));
            self.disks.push(disk);
        }
        for net in &config.nets {
            let name = format!("virtio-net-{}", net.id);
            let device = match net.vhost {
                true => VhostNet::new(net).map(|net| Box::new(net) as Box<dyn VirtioDevice>),
                false => Net::new(net).map(|net| Box::new(net) as _),
            };
            let device = device.map_err(device_error(&name))?;
            devices.push((name, device));
        }
        if let Some(vsock) = &config.vsock {
            let name = "virtio-vsock".to_owned();
            let device = match vsock.vhost {
                true => VhostVsock::new(vsock).map(|vsock| Box::new(vsock) as Box<dyn VirtioDevice>),
                false => Vsock::new(vsock).map(|vsock| Box::new(vsock) as _),
            };
            let device = device.map_err(device_error(&name))?;
            devices.push((name, device));
        }
        if let Some(console) = &config.console {
            let name = "virtio-console".to_owned();
            let device = ConsoleDevice::new(console).map_err(device_error(&name))?;
            self.console = Some(device.input());
            devices.push((name, Box::new(device)));
        }
        if let Some(balloon) = &config.balloon {
            let name = "virtio-balloon".to_owned();
            let device = BalloonDevice::new(balloon, memory_bytes, self.discard_route.clone())
                .map_err(device_error(&name))?;
            self.balloon = Some(device.handle());
            devices.push((name, Box::new(device)));
        }
        if config.rng {
            devices.push(("virtio-rng".to_owned(), Box::new(Rng::new())));
        }
        Ok(devices)
    }
}

fn device_error(name: &str) -> impl FnOnce(virtio::Error) -> Error {
    let name = name.to_owned();
    move |source| Error::Device {
        name,
        source: DeviceError::from(source),
    }
}

/// Lets KVM take the device's notifications and inject its interrupts.
fn connect(vm: &VmFd, transport: &MmioTransport, slot: VirtioSlot) -> Result<()> {
    register_line(vm, transport.interrupt_event(), slot.gsi)?;
    let notify = IoEventAddress::Mmio(u64::from(slot.address) + QUEUE_NOTIFY);
    for queue in (0u32..).take(transport.queue_count()) {
        vm.register_ioevent(transport.kick_event(queue as usize), &notify, queue)
            .map_err(|source| Error::Kvm {
                operation: "KVM_IOEVENTFD",
                source,
            })?;
    }
    Ok(())
}
