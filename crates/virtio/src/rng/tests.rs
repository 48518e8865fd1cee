use super::*;
use crate::driver::Driver;

#[test]
fn fills_what_the_driver_offers() {
    let mut driver = Driver::started(Rng::new(), 0);
    let buffer = driver.allocate(64);
    let head = driver.add(0, &[], &[(buffer, 32), (buffer + 32, 32)]);
    driver.kick(0);
    assert_eq!(driver.used(0), (head, 64));
    // 64 zero bytes happen once in 2^512.
    assert_ne!(driver.load(buffer, 64), [0; 64]);
}

#[test]
fn a_large_request_is_filled_in_part() {
    let mut driver = Driver::started(Rng::new(), 0);
    let buffer = driver.allocate(1 << 20);
    driver.add(0, &[], &[(buffer, 1 << 20)]);
    driver.kick(0);
    assert_eq!(driver.used(0).1, 4096);
    assert_eq!(driver.load(buffer + 4096, 4096), [0; 4096]);
}

#[test]
fn a_request_outside_memory_makes_the_device_need_a_reset() {
    let mut driver = Driver::started(Rng::new(), 0);
    driver.add(0, &[], &[(8 << 20, 64)]);
    driver.kick(0);
    driver.wait_needs_reset();
    driver.probe(0);
    let buffer = driver.allocate(16);
    driver.add(0, &[], &[(buffer, 16)]);
    driver.kick(0);
    assert_eq!(driver.used(0).1, 16, "a reset makes it work again");
}

#[test]
fn a_state_with_unknown_fields_is_refused() {
    let fields = vec![("x".into(), 1.into())];
    assert!(Rng::new().restore(1, &Value::Map(fields)).is_err());
    assert!(Rng::new().restore(2, &Value::Map(Vec::new())).is_err());
    assert!(Rng::new().restore(1, &Value::Map(Vec::new())).is_ok());
}
