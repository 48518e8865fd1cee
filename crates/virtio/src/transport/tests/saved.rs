//! Saved states, sound and hostile.

use super::*;
use crate::driver::{decode, encode, field};

fn saved() -> (Driver, Vec<u8>) {
    let (mut driver, device) = driver();
    driver.probe(0);
    device.with_activation(|activation| activation.interrupt.signal_config());
    driver.write(VIRTIO_MMIO_QUEUE_SEL, 1);
    driver.write(VIRTIO_MMIO_DEVICE_FEATURES_SEL, 1);
    driver.transport.pause().unwrap();
    let state = encode(&driver.transport.save().unwrap());
    (driver, state)
}

#[test]
fn a_restored_transport_shows_the_same_registers() {
    let (driver, _) = saved();
    let device = Recorder::default();
    let mut copy = driver.restored(device.clone());
    for register in (0..0x100).step_by(4) {
        assert_eq!(copy.read(register), driver.read(register), "{register:#x}");
    }
    assert_eq!(device.calls(), ["restore", "activate"]);
    device.with_activation(|activation| assert!(activation.paused));
    assert!(
        copy.transport.interrupt_event().read().is_err(),
        "nothing is raised before it is resumed"
    );
    copy.transport.resume();
    assert_eq!(device.calls(), ["resume"]);
    assert_eq!(copy.interrupt(), VIRTIO_MMIO_INT_CONFIG | VIRTIO_MMIO_INT_VRING);
    copy.transport.pause().unwrap();
    copy.transport.resume();
    assert!(
        copy.transport.interrupt_event().read().is_err(),
        "it is raised again once only"
    );
}

#[test]
fn every_step_of_a_probe_can_be_saved() {
    let steps = [
        VIRTIO_CONFIG_S_ACKNOWLEDGE,
        VIRTIO_CONFIG_S_DRIVER,
        VIRTIO_CONFIG_S_FEATURES_OK,
        0,
        4,
    ];
    let (mut driver, _) = driver();
    driver.write_features(RING_FEATURES);
    for step in steps {
        driver.add_status(step);
        if step == 0 {
            driver.features = RING_FEATURES;
            driver.set_up_queue(0);
        }
        driver.transport.pause().unwrap();
        let mut copy = driver.restored(Recorder::default());
        copy.transport.resume();
        driver = copy;
    }
    assert_eq!(driver.status(), WORKING);
}

#[test]
fn a_state_that_contradicts_itself_is_refused() {
    let (driver, state) = saved();
    let big: Value = u64::MAX.into();
    let cases: [(&str, Value); 14] = [
        ("device_type", 2.into()),
        ("status", 4.into()),
        ("status", 0x4f_u32.wrapping_add(16).into()),
        ("status", Value::Integer((-1).into())),
        ("interrupt_status", 4.into()),
        ("config_generation", big.clone()),
        ("queue_select", Value::Null),
        ("driver_features", (RING_FEATURES | 1 << 40).into()),
        (
            "driver_features",
            (RING_FEATURES & !(1 << VIRTIO_RING_F_EVENT_IDX)).into(),
        ),
        ("driver_features", Value::Text("all".to_owned())),
        ("queues", Value::Array(Vec::new())),
        ("queues", Value::Array(vec![Value::Null; 2])),
        ("queues", big),
        ("device_version", 2.into()),
    ];
    for (name, value) in cases {
        let mut state = decode(&state);
        *field(&mut state, name) = value.clone();
        refused(&driver, 1, &state, &format!("{name} = {value:?}"));
    }
    let mut unknown = decode(&state);
    unknown.as_map_mut().unwrap().push(("x".into(), 1.into()));
    refused(&driver, 1, &unknown, "unknown field");
    let mut missing = decode(&state);
    missing.as_map_mut().unwrap().pop();
    refused(&driver, 1, &missing, "missing field");
    refused(&driver, 2, &decode(&state), "unknown version");
    refused(&driver, 1, &Value::Null, "no map");
}

#[test]
fn a_state_with_queues_that_cannot_be_is_refused() {
    let (driver, state) = saved();
    let cases: [(&str, Value); 11] = [
        ("size", 0.into()),
        ("size", 3.into()),
        ("size", 32.into()),
        ("size", 65536.into()),
        ("ready", 1.into()),
        ("event_idx", false.into()),
        ("descriptor_table", (12u64 << 20).into()),
        ("descriptor_table", 0x10001.into()),
        ("available_ring", u64::MAX.into()),
        ("used_ring", ((8u64 << 20) - 4).into()),
        ("next_avail", 65536.into()),
    ];
    for (name, value) in cases {
        let mut state = decode(&state);
        *field(&mut field(&mut state, "queues").as_array_mut().unwrap()[0], name) = value.clone();
        refused(&driver, 1, &state, &format!("{name} = {value:?}"));
    }
}

fn refused(driver: &Driver, version: u32, state: &Value, case: &str) {
    let mut other = Driver::new(Recorder::default(), &driver.memory);
    assert!(other.transport.restore(version, state).is_err(), "{case}");
    // The device is as new.
    assert_eq!(other.status(), 0, "{case}");
    other.transport.resume();
    other.probe(0);
}

#[test]
fn a_device_in_use_is_not_restored() {
    let (mut driver, state) = saved();
    assert!(matches!(
        driver.transport.restore(1, &decode(&state)),
        Err(Error::Active)
    ));
    assert_eq!(driver.status(), WORKING);
}

#[test]
fn a_failed_activation_fails_the_restore() {
    let (driver, state) = saved();
    let device = Recorder::default();
    device.fail(&["activate"]);
    let mut other = Driver::new(device, &driver.memory);
    assert!(other.transport.restore(1, &decode(&state)).is_err());
    assert_eq!(other.status(), 0);
}
