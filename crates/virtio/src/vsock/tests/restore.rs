use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use super::guest::{Guest, read_line};
use crate::vsock::EVENT_QUEUE;
use crate::vsock::packet::Operation;

/// Makes event buffers available, as the driver does when it starts.
pub(super) fn offer_event_buffers(guest: &mut Guest, count: u64) -> Vec<u64> {
    let addresses: Vec<u64> = (0..count).map(|_| guest.driver.allocate(4)).collect();
    for address in &addresses {
        guest.driver.store(*address, &[0xff; 4]);
        guest.driver.add(EVENT_QUEUE, &[], &[(*address, 4)]);
    }
    guest.driver.kick(EVENT_QUEUE);
    addresses
}

#[test]
fn only_the_restored_copy_is_told_that_its_connections_are_gone_and_it_is_told_once() {
    let mut source = Guest::new();
    let buffers = offer_event_buffers(&mut source, 8);
    let (mut host, host_port) = source.connected_from_host(52);
    source.driver.transport.pause().unwrap();
    let mut copy = source.restored();
    copy.driver.transport.resume();
    assert_eq!(copy.driver.used(EVENT_QUEUE).1, 4);
    let told = buffers
        .iter()
        .filter(|address| copy.driver.load(**address, 4) == [0; 4]);
    assert_eq!(told.count(), 1);

    source.driver.transport.resume();
    host.write_all(b"go on").unwrap();
    assert_eq!(source.data(), b"go on");
    source.send(52, host_port, Operation::Data, b"all right");
    let mut text = [0; 9];
    host.read_exact(&mut text).unwrap();
    assert_eq!(&text, b"all right");
    assert!(source.driver.try_used(EVENT_QUEUE).is_none());

    copy.driver.transport.pause().unwrap();
    copy.driver.transport.resume();
    offer_event_buffers(&mut copy, 1);
    copy.connected_from_host(52);
    assert!(
        copy.driver.try_used(EVENT_QUEUE).is_none(),
        "a pause is no restore"
    );
}

#[test]
fn a_restored_guest_gets_no_packet_before_it_has_seen_the_notice() {
    let mut source = Guest::new();
    offer_event_buffers(&mut source, 1);
    source.driver.transport.pause().unwrap();
    let mut copy = source.restored();
    let mut host = UnixStream::connect(copy.path()).unwrap();
    host.write_all(b"CONNECT 52\n").unwrap();
    copy.driver.transport.resume();
    copy.driver.used(EVENT_QUEUE);
    // The device has looked at all queues when it has taken this packet.
    copy.send(1, 2, Operation::Data, b"to nobody");
    copy.driver.used(crate::vsock::TX_QUEUE);
    assert!(copy.try_receive().is_none());
    offer_event_buffers(&mut copy, 1);
    let (first, _) = copy.receive();
    let (second, _) = copy.receive();
    let mut operations = [first.operation, second.operation];
    operations.sort_by_key(|operation| *operation == Operation::Request);
    assert_eq!(operations, [Operation::Reset, Operation::Request]);
    let request = if first.operation == Operation::Request {
        first
    } else {
        second
    };
    copy.send(52, request.src_port, Operation::Response, b"");
    read_line(&mut host);
}

#[test]
fn the_notice_waits_for_an_event_buffer() {
    let mut source = Guest::new();
    source.driver.transport.pause().unwrap();
    let mut copy = source.restored();
    copy.driver.transport.resume();
    offer_event_buffers(&mut copy, 1);
    copy.driver.used(EVENT_QUEUE);
    offer_event_buffers(&mut copy, 1);
    copy.connected_from_host(52);
}

#[test]
fn host_ports_are_not_used_again_after_a_restore() {
    let mut source = Guest::new();
    offer_event_buffers(&mut source, 1);
    let (_host, first) = source.connected_from_host(52);
    source.driver.transport.pause().unwrap();
    let mut copy = source.restored();
    copy.driver.transport.resume();
    copy.driver.used(EVENT_QUEUE);
    offer_event_buffers(&mut copy, 1);
    let (_host, second) = copy.connected_from_host(52);
    assert_eq!(second, first + 1);
}

#[test]
fn a_driver_that_starts_afresh_after_a_restore_is_told_nothing() {
    let mut source = Guest::new();
    source.driver.transport.pause().unwrap();
    let mut copy = source.restored();
    copy.driver.transport.resume();
    copy.restart();
    offer_event_buffers(&mut copy, 1);
    copy.connected_from_host(52);
    assert!(copy.driver.try_used(EVENT_QUEUE).is_none());
}
