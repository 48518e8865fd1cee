use std::sync::{Arc, Mutex};

use proptest::prelude::*;
use virtio_bindings::virtio_config::*;
use virtio_bindings::virtio_mmio::*;

use super::*;
use crate::device::read_config_bytes;
use crate::driver::{Driver, RING_FEATURES, WORKING, memory};
use crate::worker::Work;

mod random;
mod saved;
mod specification;

/// Feature bits that the device under test offers besides the transport's.
const FEATURES: u64 = 1 << 3 | 1 << 50;

/// A device that does nothing but remember what was asked of it.
#[derive(Clone, Default)]
struct Recorder {
    log: Arc<Mutex<Log>>,
}

#[derive(Default)]
struct Log {
    activation: Option<Activation>,
    calls: Vec<String>,
    /// Calls that are to fail.
    failing: Vec<&'static str>,
    written: Vec<(u64, Vec<u8>)>,
}

impl Recorder {
    fn note(&self, call: &'static str) -> Result<()> {
        let mut log = self.log.lock().unwrap();
        log.calls.push(call.to_owned());
        if log.failing.contains(&call) {
            Err(Error::NotPaused)
        } else {
            Ok(())
        }
    }

    fn fail(&self, calls: &[&'static str]) {
        self.log.lock().unwrap().failing = calls.to_vec();
    }

    fn calls(&self) -> Vec<String> {
        std::mem::take(&mut self.log.lock().unwrap().calls)
    }

    fn with_activation<R>(&self, look: impl FnOnce(&Activation) -> R) -> R {
        look(
            self.log
                .lock()
                .unwrap()
                .activation
                .as_ref()
                .expect("an activated device"),
        )
    }
}

impl Work for Recorder {
    fn activate(&mut self, activation: Activation) -> Result<()> {
        self.note("activate")?;
        self.log.lock().unwrap().activation = Some(activation);
        Ok(())
    }

    fn pause(&mut self) -> Result<()> {
        self.note("pause")
    }

    fn resume(&mut self) {
        self.note("resume").unwrap();
    }

    fn reset(&mut self) -> Result<()> {
        self.note("reset")?;
        self.log.lock().unwrap().activation = None;
        Ok(())
    }

    fn queue_states(&self) -> Result<Vec<QueueState>> {
        Ok(self.with_activation(|activation| {
            activation
                .queues
                .iter()
                .map(|queue| QueueState::of(&queue.queue))
                .collect()
        }))
    }
}

impl VirtioDevice for Recorder {
    fn device_type(&self) -> u32 {
        63
    }

    fn features(&self) -> u64 {
        FEATURES
    }

    fn queue_sizes(&self) -> &[u16] {
        &[16, 32]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config_bytes(b"0123456789", offset, data);
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        self.log.lock().unwrap().written.push((offset, data.to_vec()));
    }

    fn worker(&self) -> &dyn Work {
        self
    }

    fn worker_mut(&mut self) -> &mut dyn Work {
        self
    }

    fn save(&self) -> Result<Value> {
        Ok(Value::Map(Vec::new()))
    }

    fn restore(&mut self, version: u32, _state: &Value) -> Result<()> {
        self.note("restore")?;
        if version == 1 {
            Ok(())
        } else {
            Err(Error::Version {
                saved: version,
                known: 1,
            })
        }
    }
}

fn driver() -> (Driver, Recorder) {
    let device = Recorder::default();
    (Driver::new(device.clone(), &memory()), device)
}

/// A driver that has agreed on features.
fn agreed() -> (Driver, Recorder) {
    let (mut driver, device) = driver();
    driver.add_status(VIRTIO_CONFIG_S_ACKNOWLEDGE);
    driver.add_status(VIRTIO_CONFIG_S_DRIVER);
    driver.write_features(RING_FEATURES);
    driver.add_status(VIRTIO_CONFIG_S_FEATURES_OK);
    assert_eq!(driver.status(), WORKING & !VIRTIO_CONFIG_S_DRIVER_OK);
    (driver, device)
}

#[test]
fn a_probe_activates_the_device_once_with_what_was_agreed() {
    let (mut driver, device) = driver();
    assert_eq!(driver.read(VIRTIO_MMIO_DEVICE_ID), 63);
    driver.probe(1 << 50);
    assert_eq!(driver.status(), WORKING);
    device.with_activation(|activation| {
        assert_eq!(activation.features, RING_FEATURES | 1 << 3);
        assert!(activation.has_feature(3) && !activation.has_feature(50) && !activation.paused);
        let queues: Vec<_> = activation
            .queues
            .iter()
            .map(|queue| (queue.index, queue.queue.size(), queue.queue.ready()))
            .collect();
        assert_eq!(queues, [(0, 16, true), (1, 32, true)]);
    });
    driver.add_status(VIRTIO_CONFIG_S_DRIVER_OK);
    assert_eq!(device.calls(), ["reset", "activate"]);
}

#[test]
fn features_are_refused_that_were_not_offered_or_lack_the_version() {
    let version = 1 << VIRTIO_F_VERSION_1;
    for (features, good) in [
        (0, false),
        (FEATURES, false),
        (version, true),
        (version | FEATURES, true),
        (version | 1 << 4, false),
        (version | 1 << VIRTIO_F_RING_PACKED, false),
        (u64::MAX, false),
    ] {
        let (mut driver, _) = driver();
        driver.add_status(VIRTIO_CONFIG_S_ACKNOWLEDGE);
        driver.add_status(VIRTIO_CONFIG_S_DRIVER);
        driver.write_features(features);
        driver.add_status(VIRTIO_CONFIG_S_FEATURES_OK);
        assert_eq!(
            driver.status() & VIRTIO_CONFIG_S_FEATURES_OK != 0,
            good,
            "{features:#x}"
        );
        // A driver may choose again after a refusal.
        driver.write_features(version);
        driver.add_status(VIRTIO_CONFIG_S_FEATURES_OK);
        assert_ne!(driver.status() & VIRTIO_CONFIG_S_FEATURES_OK, 0);
    }
}

#[test]
fn a_driver_is_not_ready_before_its_time() {
    let (mut driver, device) = driver();
    for status in [
        VIRTIO_CONFIG_S_DRIVER_OK,
        VIRTIO_CONFIG_S_FEATURES_OK,
        1 << 4,
        1 << 5,
        u32::MAX,
    ] {
        driver.write(VIRTIO_MMIO_STATUS, status);
        assert_eq!(
            driver.status() & (VIRTIO_CONFIG_S_DRIVER_OK | VIRTIO_CONFIG_S_FEATURES_OK),
            0
        );
        driver.write(VIRTIO_MMIO_STATUS, 0);
        assert_eq!(driver.status(), 0);
    }
    assert!(!device.calls().contains(&"activate".to_owned()));
}

#[test]
fn a_driver_that_gave_up_is_not_served() {
    let (mut driver, device) = agreed();
    driver.add_status(VIRTIO_CONFIG_S_FAILED);
    driver.add_status(VIRTIO_CONFIG_S_DRIVER_OK);
    assert_eq!(driver.status() & VIRTIO_CONFIG_S_DRIVER_OK, 0);
    assert_eq!(device.calls(), [""; 0]);
}

#[test]
fn features_and_queues_cannot_change_once_agreed_on() {
    let (mut driver, device) = agreed();
    driver.write_features(0);
    driver.set_up_queue(0);
    driver.write(VIRTIO_MMIO_QUEUE_NUM, 2);
    driver.add_status(VIRTIO_CONFIG_S_DRIVER_OK);
    driver.write(VIRTIO_MMIO_QUEUE_READY, 0);
    driver.write(VIRTIO_MMIO_QUEUE_SEL, 1);
    driver.write(VIRTIO_MMIO_QUEUE_READY, 1);
    assert_eq!(driver.read(VIRTIO_MMIO_QUEUE_READY), 0);
    device.with_activation(|activation| {
        assert_eq!(activation.features, RING_FEATURES);
        assert_eq!(activation.queues[0].queue.size(), 16);
        assert!(!activation.queues[1].queue.ready(), "left out");
    });
}

#[test]
fn rings_outside_memory_or_misaligned_do_not_become_ready() {
    let (mut driver, _) = agreed();
    let good = driver.place_ring(16);
    driver.write(VIRTIO_MMIO_QUEUE_SEL, 0);
    for (name, low, address) in [
        ("table in the hole", VIRTIO_MMIO_QUEUE_DESC_LOW, 12 << 20),
        (
            "table across the edge",
            VIRTIO_MMIO_QUEUE_DESC_LOW,
            (8 << 20) - 16,
        ),
        (
            "table at the end of addresses",
            VIRTIO_MMIO_QUEUE_DESC_LOW,
            u64::MAX - 15,
        ),
        ("table misaligned", VIRTIO_MMIO_QUEUE_DESC_LOW, 0x10008),
        (
            "available ring in the hole",
            VIRTIO_MMIO_QUEUE_AVAIL_LOW,
            12 << 20,
        ),
        ("available ring misaligned", VIRTIO_MMIO_QUEUE_AVAIL_LOW, 0x10001),
        ("used ring beyond memory", VIRTIO_MMIO_QUEUE_USED_LOW, 1 << 40),
        ("used ring misaligned", VIRTIO_MMIO_QUEUE_USED_LOW, 0x10002),
    ] {
        driver.write_ring(&good);
        driver.write(low, (address & 0xffff_ffff) as u32);
        driver.write(low + 4, (address >> 32) as u32);
        driver.write(VIRTIO_MMIO_QUEUE_READY, 1);
        assert_eq!(driver.read(VIRTIO_MMIO_QUEUE_READY), 0, "{name}");
    }
    driver.write_ring(&good);
    for size in [0, 3, 32, 0x1_0010, u32::MAX] {
        driver.write(VIRTIO_MMIO_QUEUE_NUM, size);
    }
    driver.write(VIRTIO_MMIO_QUEUE_READY, 1);
    assert_eq!(
        driver.read(VIRTIO_MMIO_QUEUE_READY),
        1,
        "sizes that cannot be are ignored"
    );
}

#[test]
fn queues_that_are_not_there_read_as_zero_and_take_nothing() {
    let (mut driver, _) = agreed();
    for queue in [2, 1 << 16, u32::MAX] {
        driver.write(VIRTIO_MMIO_QUEUE_SEL, queue);
        for register in (0x30..0xac).step_by(4) {
            if ![VIRTIO_MMIO_STATUS, VIRTIO_MMIO_QUEUE_SEL].contains(&register) {
                driver.write(register, 1);
            }
        }
        assert_eq!(driver.read(VIRTIO_MMIO_QUEUE_NUM_MAX), 0);
        assert_eq!(driver.read(VIRTIO_MMIO_QUEUE_READY), 0);
        driver.write(VIRTIO_MMIO_QUEUE_NOTIFY, queue);
    }
}

#[test]
fn accesses_of_the_wrong_shape_read_zeros_and_change_nothing() {
    let (mut driver, _) = driver();
    for (offset, len) in [
        (0, 1),
        (0, 2),
        (0, 8),
        (1, 4),
        (2, 4),
        (0x70, 1),
        (0x70, 8),
        (0xfc, 8),
        (0, 0),
    ] {
        let mut data = vec![0xff; len];
        driver.transport.read(offset, &mut data);
        assert_eq!(data, vec![0; len], "{offset:#x}");
        driver.transport.write(offset, &vec![0xff; len]);
    }
    assert_eq!(driver.status(), 0);
    assert_eq!(
        driver.read(VIRTIO_MMIO_SHM_LEN_LOW),
        u32::MAX,
        "no region of shared memory"
    );
}

#[test]
fn the_configuration_space_is_read_and_written_in_any_width() {
    let (mut driver, device) = driver();
    assert_eq!(&driver.config::<1>(3), b"3");
    assert_eq!(&driver.config::<8>(1), b"12345678");
    assert_eq!(&driver.config::<4>(8), b"89\0\0");
    assert_eq!(&driver.config::<4>(u64::MAX - 256), &[0; 4]);
    driver.transport.write(0x100 + 5, &[7, 8]);
    assert_eq!(device.log.lock().unwrap().written, [(5, vec![7, 8])]);
}

#[test]
fn a_notification_kicks_the_queue_that_it_names() {
    let (mut driver, _) = driver();
    driver.probe(0);
    driver.write(VIRTIO_MMIO_QUEUE_NOTIFY, 1);
    assert!(driver.transport.kick_event(0).read().is_err());
    assert_eq!(driver.transport.kick_event(1).read().unwrap(), 1);
}

#[test]
fn interrupts_are_pending_until_acknowledged() {
    let (mut driver, device) = driver();
    driver.probe(0);
    let interrupt = device.with_activation(|activation| activation.interrupt.clone());
    let generation = driver.read(VIRTIO_MMIO_CONFIG_GENERATION);
    interrupt.signal_queue(1);
    interrupt.signal_config();
    assert_eq!(driver.transport.interrupt_event().read().unwrap(), 2);
    assert_ne!(driver.read(VIRTIO_MMIO_CONFIG_GENERATION), generation);
    assert_eq!(driver.read(VIRTIO_MMIO_INTERRUPT_STATUS), 3);
    driver.write(VIRTIO_MMIO_INTERRUPT_ACK, 1);
    assert_eq!(driver.read(VIRTIO_MMIO_INTERRUPT_STATUS), 2);
    driver.write(VIRTIO_MMIO_INTERRUPT_ACK, u32::MAX);
    assert_eq!(driver.read(VIRTIO_MMIO_INTERRUPT_STATUS), 0);
}

#[test]
fn an_error_of_the_device_asks_for_a_reset_until_there_is_one() {
    let (mut driver, device) = driver();
    driver.probe(0);
    device.with_activation(|activation| activation.interrupt.signal_needs_reset());
    assert_eq!(driver.status(), WORKING | VIRTIO_CONFIG_S_NEEDS_RESET);
    assert_eq!(driver.interrupt(), VIRTIO_MMIO_INT_CONFIG);
    driver.write(VIRTIO_MMIO_STATUS, driver.status() & !VIRTIO_CONFIG_S_NEEDS_RESET);
    assert_ne!(
        driver.status() & VIRTIO_CONFIG_S_NEEDS_RESET,
        0,
        "only a reset takes it away"
    );
    driver.probe(0);
    assert_eq!(driver.status(), WORKING);
}

#[test]
fn a_failed_activation_asks_for_a_reset() {
    let (mut driver, device) = driver();
    device.fail(&["activate"]);
    driver.probe(0);
    assert_eq!(driver.status(), WORKING | VIRTIO_CONFIG_S_NEEDS_RESET);
    device.fail(&[]);
    driver.probe(0);
    assert_eq!(driver.status(), WORKING);
}

#[test]
fn a_reset_that_did_not_happen_is_seen_and_may_be_tried_again() {
    let (mut driver, device) = driver();
    driver.probe(0);
    device.fail(&["reset"]);
    driver.write(VIRTIO_MMIO_STATUS, 0);
    assert_eq!(driver.status(), WORKING | VIRTIO_CONFIG_S_NEEDS_RESET);
    device.fail(&[]);
    driver.write(VIRTIO_MMIO_STATUS, 0);
    assert_eq!(driver.status(), 0);
    assert_eq!(driver.read(VIRTIO_MMIO_INTERRUPT_STATUS), 0);
}

#[test]
fn a_reset_and_an_activation_while_paused_stay_paused() {
    let (mut driver, device) = driver();
    driver.probe(0);
    driver.transport.pause().unwrap();
    driver.probe(0);
    device.with_activation(|activation| assert!(activation.paused));
    driver.transport.pause().unwrap();
    driver.transport.resume();
    driver.transport.resume();
    assert_eq!(
        device.calls(),
        ["reset", "activate", "pause", "reset", "activate", "resume"]
    );
}

#[test]
fn a_pause_that_failed_leaves_the_device_at_work() {
    let (mut driver, device) = driver();
    driver.probe(0);
    device.fail(&["pause"]);
    assert!(driver.transport.pause().is_err());
    assert!(
        driver.transport.save().is_err(),
        "a device at work cannot be saved"
    );
    device.fail(&[]);
    driver.transport.pause().unwrap();
    driver.transport.save().unwrap();
}
