use proptest::prelude::*;

use super::guest::Guest;
use crate::vsock::packet::{HEADER_BYTES, Header, Operation};
use crate::vsock::{RX_QUEUE, TX_QUEUE};

/// Shows that the device still works: it refuses a connection to a service that is not there.
fn assert_alive(guest: &mut Guest) {
    guest.send(4_000_000_000, 77, Operation::Request, b"");
    loop {
        let (header, _) = guest.receive();
        if header.dst_port == 4_000_000_000 {
            assert_eq!(header.operation, Operation::Reset);
            return;
        }
    }
}

#[test]
fn packets_for_others_and_of_unknown_types_are_refused() {
    let mut guest = Guest::new();
    let sensible = guest.header(1, 2, Operation::Request);
    for header in [
        Header {
            dst_cid: 9,
            ..sensible
        },
        Header {
            socket_type: 2,
            ..sensible
        },
        Header {
            operation: Operation::Unknown(0),
            ..sensible
        },
        Header {
            operation: Operation::Data,
            ..sensible
        },
    ] {
        guest.driver.kick(RX_QUEUE);
        guest.send_raw(&header.to_bytes(), b"");
        let used = guest.driver.used(RX_QUEUE);
        assert_eq!(used.1 as usize, HEADER_BYTES);
        guest.offer_buffers(1);
    }
}

#[test]
fn a_packet_in_the_name_of_another_and_a_reset_of_nothing_are_dropped() {
    let mut guest = Guest::new();
    let sensible = guest.header(1, 2, Operation::Request);
    guest.send_raw(
        &Header {
            src_cid: 3,
            ..sensible
        }
        .to_bytes(),
        b"",
    );
    guest.send(1, 2, Operation::Reset, b"");
    guest.send(5, 2, Operation::Request, b"");
    assert_eq!(
        guest.receive().0.dst_port,
        5,
        "the first reply is for the last packet"
    );
}

#[test]
fn refusals_beyond_their_room_wait_for_buffers_and_are_not_lost() {
    let mut guest = Guest::without_buffers();
    let count = 400;
    let mut sent = 0;
    for refused in 0..count {
        while guest.driver.try_used(TX_QUEUE).is_some() {}
        // The ring is full when the device takes no more.
        while sent < count && guest.driver.rings[TX_QUEUE].room() > 2 {
            guest.send(sent, 9, Operation::Request, b"");
            sent += 1;
        }
        if refused == 0 {
            guest.offer_buffers(1);
        }
        let (header, _) = guest.receive();
        assert_eq!((header.operation, header.dst_port), (Operation::Reset, refused));
    }
}

#[test]
fn packets_that_contradict_themselves_make_the_device_ask_for_a_reset() {
    let data = |guest: &Guest, len| {
        Header {
            len,
            ..guest.header(1, 2, Operation::Data)
        }
        .to_bytes()
    };
    let mut guest = Guest::new();
    guest.send_raw(&[0; HEADER_BYTES - 1], b"");
    guest.driver.wait_needs_reset();
    guest.restart();
    let header = data(&guest, 100);
    guest.send_raw(&header, b"less than that");
    guest.driver.wait_needs_reset();
    guest.restart();
    let header = data(&guest, u32::MAX);
    guest.send_raw(&header, b"");
    guest.driver.wait_needs_reset();
    guest.restart();
    assert_alive(&mut guest);
}

#[test]
fn a_buffer_too_short_for_a_header_makes_the_device_ask_for_a_reset() {
    let mut guest = Guest::without_buffers();
    let address = guest.driver.allocate(16);
    guest.driver.add(RX_QUEUE, &[], &[(address, 16)]);
    guest.driver.kick(RX_QUEUE);
    guest.send(1, 2, Operation::Request, b"");
    guest.driver.wait_needs_reset();
    guest.restart();
    assert_alive(&mut guest);
}

#[test]
fn a_buffer_outside_memory_makes_the_device_ask_for_a_reset() {
    let mut guest = Guest::without_buffers();
    guest.driver.add(RX_QUEUE, &[], &[(9 << 20, 4096)]);
    guest.driver.kick(RX_QUEUE);
    guest.send(1, 2, Operation::Request, b"");
    guest.driver.wait_needs_reset();
    guest.restart();
    assert_alive(&mut guest);
}

/// Ports, operation, flags, credit and payload of a packet.
type Packet = ((u32, u32), u16, (u32, u32, u32), Vec<u8>);

/// Packets that are wrong in every way but for their source, of few ports so that they meet.
fn packets() -> impl Strategy<Value = Vec<Packet>> {
    let port = 0_u32..4;
    let operation = 0_u16..9;
    let payload = proptest::collection::vec(any::<u8>(), 0..300);
    let packet = ((port.clone(), port), operation, any::<(u32, u32, u32)>(), payload);
    proptest::collection::vec(packet, 1..60)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn no_sequence_of_packets_stops_the_device(packets in packets()) {
        let mut guest = Guest::new();
        let service = std::os::unix::net::UnixListener::bind(guest.path_of_service(1)).unwrap();
        for ((from, to), operation, (flags, buf_alloc, fwd_cnt), payload) in packets {
            let mut bytes = Header {
                flags,
                buf_alloc,
                fwd_cnt,
                len: u32::try_from(payload.len()).unwrap(),
                ..guest.header(from, to, Operation::Data)
            }
            .to_bytes();
            bytes[30..32].copy_from_slice(&operation.to_le_bytes());
            guest.send_raw(&bytes, &payload);
            while guest.try_receive().is_some() {}
        }
        assert_alive(&mut guest);
        drop(service);
    }
}
