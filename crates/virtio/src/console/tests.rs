use std::io::{self, Read, Write};
use std::sync::mpsc;

use proptest::prelude::*;

use super::*;
use crate::config::ConsoleOutput;
use crate::driver::{Driver, PATIENCE};

/// A console whose output goes to the receiver, a piece at a time, and waits for it to be received.
fn watched() -> (ConsoleDevice, mpsc::Receiver<Vec<u8>>) {
    struct Pieces(mpsc::SyncSender<Vec<u8>>);
    impl Write for Pieces {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0
                .send(bytes.to_vec())
                .map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let (sender, receiver) = mpsc::sync_channel(0);
    let output = Output::to(Some(Box::new(Pieces(sender)))).unwrap();
    (device(output), receiver)
}

fn device(output: Output) -> ConsoleDevice {
    let input = ConsoleInput::new().unwrap();
    ConsoleDevice {
        worker: Worker::new("console", Handler::new(input.clone(), output)),
        input,
    }
}

/// Puts `bytes` into guest memory and makes them available as output.
fn print(driver: &mut Driver, bytes: &[u8]) {
    let address = driver.allocate(bytes.len() as u64);
    driver.store(address, bytes);
    let len = u32::try_from(bytes.len()).unwrap();
    // In two descriptors, which must not matter.
    let cut = len / 2;
    let pieces = [(address, cut), (address + u64::from(cut), len - cut)];
    driver.add(1, &pieces, &[]);
    driver.kick(1);
}

/// Receives output until there are `len` bytes of it.
fn receive(receiver: &mpsc::Receiver<Vec<u8>>, len: usize) -> Vec<u8> {
    let mut all = Vec::new();
    while all.len() < len {
        all.extend(receiver.recv_timeout(PATIENCE).unwrap());
    }
    all
}

#[test]
fn output_arrives_in_order() {
    let (device, receiver) = watched();
    let mut driver = Driver::started(device, 0);
    let mut expected = Vec::new();
    for line in 0..100 {
        let line = format!("line {line}\n");
        print(&mut driver, line.as_bytes());
        expected.extend(line.into_bytes());
        if driver.rings[1].room() < 2 {
            driver.used(1);
        }
    }
    assert_eq!(receive(&receiver, expected.len()), expected);
}

#[test]
fn files_are_appended_to_and_have_everything_when_the_device_is_gone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("console.log");
    for text in ["first boot\n", "second boot\n"] {
        let config = ConsoleConfig {
            output: ConsoleOutput::File(path.clone()),
        };
        let mut driver = Driver::started(ConsoleDevice::new(&config).unwrap(), 0);
        print(&mut driver, text.as_bytes());
        assert_eq!(driver.used(1).1, 0);
    }
    let mut written = String::new();
    std::fs::File::open(&path)
        .unwrap()
        .read_to_string(&mut written)
        .unwrap();
    assert_eq!(written, "first boot\nsecond boot\n");
    let config = ConsoleConfig {
        output: ConsoleOutput::File(directory.path().join("no/such/directory")),
    };
    assert!(ConsoleDevice::new(&config).is_err());
}

#[test]
fn a_console_without_output_takes_everything() {
    let mut driver = Driver::started(ConsoleDevice::new(&ConsoleConfig::default()).unwrap(), 0);
    for _ in 0..100 {
        print(&mut driver, &[b'x'; BUFFER_BYTES / 4]);
        driver.used(1);
        driver.probe(0);
    }
}

#[test]
fn output_that_nobody_reads_waits_in_the_ring_and_does_not_hold_up_a_pause() {
    let (device, receiver) = watched();
    let mut driver = Driver::started(device, 0);
    let block = vec![b'a'; BUFFER_BYTES];
    // One with the reader, one in the buffer, one in the ring.
    for _ in 0..3 {
        print(&mut driver, &block);
    }
    driver.used(1);
    driver.used(1);
    assert!(driver.try_used(1).is_none());
    driver.transport.pause().unwrap();
    driver.transport.save().unwrap();
    driver.transport.resume();
    assert!(driver.try_used(1).is_none());
    assert_eq!(receive(&receiver, 3 * BUFFER_BYTES).len(), 3 * BUFFER_BYTES);
    driver.used(1);
}

#[test]
fn output_to_what_has_failed_is_lost_and_the_guest_goes_on() {
    let (device, receiver) = watched();
    drop(receiver);
    let mut driver = Driver::started(device, 0);
    for _ in 0..20 {
        print(&mut driver, &vec![b'a'; BUFFER_BYTES]);
        driver.used(1);
        driver.probe(0);
    }
}

#[test]
fn input_waits_for_memory_and_is_cut_to_its_size() {
    let device = ConsoleDevice::new(&ConsoleConfig::default()).unwrap();
    let input = device.input();
    assert_eq!(input.send(b"early "), 6);
    let mut driver = Driver::started(device, 0);
    let address = driver.allocate(4096);
    let head = driver.add(0, &[], &[(address, 2), (address + 2, 2)]);
    driver.kick(0);
    assert_eq!(driver.used(0), (head, 4));
    let head = driver.add(0, &[], &[(address + 4, 100)]);
    driver.kick(0);
    assert_eq!(driver.used(0), (head, 2));
    let head = driver.add(0, &[], &[(address + 6, 100)]);
    driver.kick(0);
    assert_eq!(input.send(b"bird"), 4);
    assert_eq!(driver.used(0), (head, 4));
    assert_eq!(driver.load(address, 10), b"early bird");
}

#[test]
fn input_is_taken_up_to_a_bound() {
    let input = ConsoleInput::new().unwrap();
    assert_eq!(input.send(&vec![b'x'; BUFFER_BYTES - 1]), BUFFER_BYTES - 1);
    assert_eq!(input.send(b"ab"), 1);
    assert_eq!(input.send(b"b"), 0);
    assert_eq!(input.take(BUFFER_BYTES).last(), Some(&b'a'));
}

#[test]
fn chains_against_the_rules_make_the_device_need_a_reset() {
    let input = b"typed";
    for (queue, piece) in [(0, (12 << 20, 64)), (1, (12 << 20, 64))] {
        let device = ConsoleDevice::new(&ConsoleConfig::default()).unwrap();
        let _ = device.input().send(input);
        let mut driver = Driver::started(device, 0);
        let (readable, writable) = if queue == 0 {
            (vec![], vec![piece])
        } else {
            (vec![piece], vec![])
        };
        driver.add(queue, &readable, &writable);
        driver.kick(queue);
        driver.wait_needs_reset();
    }
    // Memory of the wrong kind has no bytes to take or to fill.
    let mut driver = Driver::started(ConsoleDevice::new(&ConsoleConfig::default()).unwrap(), 0);
    let address = driver.allocate(4096);
    driver.add(1, &[], &[(address, 64)]);
    driver.kick(1);
    assert_eq!(driver.used(1).1, 0);
}

#[test]
fn a_copy_goes_on_with_what_waits_in_its_rings() {
    let (device, _receiver) = watched();
    let mut driver = Driver::started(device, 0);
    driver.transport.pause().unwrap();
    print(&mut driver, b"after the pause");
    let address = driver.allocate(4096);
    let head = driver.add(0, &[], &[(address, 64)]);
    driver.kick(0);
    let (device, receiver) = watched();
    let input = device.input();
    let mut copy = driver.restored(device);
    copy.transport.resume();
    assert_eq!(receive(&receiver, 15), b"after the pause");
    assert_eq!(input.send(b"typed"), 5);
    assert_eq!(copy.used(0), (head, 5));
    assert_eq!(copy.load(address, 5), b"typed");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    #[test]
    fn input_arrives_whole_and_in_order_however_it_is_typed_and_received(
        typed in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 1..20),
        sizes in prop::collection::vec(1..200_u32, 1..20),
    ) {
        let device = ConsoleDevice::new(&ConsoleConfig::default()).unwrap();
        let input = device.input();
        let mut driver = Driver::started(device, 0);
        let address = driver.allocate(4096);
        let expected = typed.concat();
        let mut typed = typed.iter();
        let mut received = Vec::new();
        let mut sent = 0;
        for size in sizes.iter().cycle() {
            if received.len() == expected.len() {
                break;
            }
            while sent == received.len() {
                sent += typed.next().map_or(0, |bytes| input.send(bytes));
            }
            driver.add(0, &[], &[(address, *size)]);
            driver.kick(0);
            let (_, len) = driver.used(0);
            received.extend(driver.load(address, len as usize));
        }
        prop_assert_eq!(received, expected);
    }
}
