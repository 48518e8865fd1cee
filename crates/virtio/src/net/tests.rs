mod vhost;

use std::collections::HashMap;

use proptest::prelude::*;

use super::*;
use crate::driver::Driver;
use crate::tap::HEADER_BYTES;
use crate::tap::tests::{own_network, set_up};

const HOST: [u8; 4] = [192, 0, 2, 1];
const GUEST: [u8; 4] = [192, 0, 2, 2];
const MAC: MacAddress = MacAddress([0x52, 0x54, 0, 0x12, 0x34, 0x56]);
const ARP: [u8; 2] = [0x08, 0x06];
const IPV4: [u8; 2] = [0x08, 0x00];

/// A guest with an interface; the host answers on the other side.
struct Guest {
    driver: Driver,
    buffers: HashMap<u16, (u64, u32)>,
    outgoing: u64,
    buffer_bytes: u32,
}

fn config(tap: &str, mac: Option<MacAddress>) -> NetConfig {
    NetConfig {
        id: "net0".to_owned(),
        tap: tap.to_owned(),
        mac,
        vhost: false,
    }
}

impl Guest {
    fn new(tap: &str, buffer_bytes: u32, buffers: u32) -> Self {
        let device = Net::new(&config(tap, Some(MAC))).unwrap();
        Self::with(device, tap, buffer_bytes, buffers)
    }

    fn with(device: impl VirtioDevice + 'static, tap: &str, buffer_bytes: u32, buffers: u32) -> Self {
        set_up(tap, HOST);
        let mut guest = Self::of(Driver::started(device, 0), buffer_bytes);
        guest.offer_buffers(buffers);
        guest
    }

    fn of(mut driver: Driver, buffer_bytes: u32) -> Self {
        let outgoing = driver.allocate(128 << 10);
        Self {
            driver,
            buffers: HashMap::new(),
            outgoing,
            buffer_bytes,
        }
    }

    fn offer_buffers(&mut self, count: u32) {
        for _ in 0..count {
            let address = self.driver.allocate(self.buffer_bytes.into());
            self.offer(address);
        }
        self.driver.kick(RX_QUEUE);
    }

    fn offer(&mut self, address: u64) {
        let head = self.driver.add(RX_QUEUE, &[], &[(address, self.buffer_bytes)]);
        self.buffers.insert(head, (address, self.buffer_bytes));
    }

    fn send_raw(&mut self, packet: &[u8]) {
        self.post(packet);
        self.driver.used(TX_QUEUE);
    }

    /// Sends a packet without waiting for the device to take it.
    fn post(&mut self, packet: &[u8]) {
        self.driver.store(self.outgoing, packet);
        let len = u32::try_from(packet.len()).unwrap();
        self.driver.add(TX_QUEUE, &[(self.outgoing, len)], &[]);
        self.driver.kick(TX_QUEUE);
    }

    fn send(&mut self, to: [u8; 6], kind: [u8; 2], payload: &[u8]) {
        self.send_raw(&packet(to, kind, payload));
    }

    /// The next packet from the host of this kind, without headers, and over how many buffers it was laid.
    fn receive(&mut self, kind: [u8; 2]) -> (Vec<u8>, u16) {
        loop {
            let mut packet = self.take_buffer();
            let count = u16::from_le_bytes([packet[10], packet[11]]);
            for _ in 1..count {
                packet.extend(self.take_buffer());
            }
            self.driver.kick(RX_QUEUE);
            let payload = packet.split_off(HEADER_BYTES + 14);
            if packet[HEADER_BYTES + 12..] == kind {
                return (payload, count);
            }
        }
    }

    fn take_buffer(&mut self) -> Vec<u8> {
        let (head, written) = self.driver.used(RX_QUEUE);
        let (address, len) = self.buffers.remove(&head).unwrap();
        assert!(written <= len);
        let bytes = self.driver.load(address, written as usize);
        self.offer(address);
        bytes
    }

    fn ask_for_address(&mut self) {
        self.send([0xff; 6], ARP, &question());
    }

    /// The host's Ethernet address, by ARP.
    fn address_of_host(&mut self) -> [u8; 6] {
        self.ask_for_address();
        self.address_answered()
    }

    fn address_answered(&mut self) -> [u8; 6] {
        loop {
            let (answer, _) = self.receive(ARP);
            if answer[7] == 2 {
                assert_eq!(answer[14..18], HOST);
                return answer[8..14].try_into().unwrap();
            }
        }
    }

    /// Has the host echo `data`; returns the echo and over how many buffers it was laid.
    fn ping(&mut self, data: &[u8]) -> (Vec<u8>, u16) {
        let host = self.address_of_host();
        let mut icmp = vec![8, 0, 0, 0, 0, 7, 0, 1];
        icmp.extend(data);
        let sum = checksum(&icmp);
        icmp[2..4].copy_from_slice(&sum);
        let mut ip = vec![0x45, 0, 0, 0, 0, 1, 0, 0, 64, 1, 0, 0];
        ip.extend(GUEST);
        ip.extend(HOST);
        let len = u16::try_from(ip.len() + icmp.len()).unwrap();
        ip[2..4].copy_from_slice(&len.to_be_bytes());
        let sum = checksum(&ip);
        ip[10..12].copy_from_slice(&sum);
        ip.extend(icmp);
        self.send(host, IPV4, &ip);
        loop {
            let (answer, count) = self.receive(IPV4);
            if answer[9] == 1 && answer[20] == 0 {
                return (answer[28..].to_vec(), count);
            }
        }
    }
}

/// A packet of the guest with its headers.
fn packet(to: [u8; 6], kind: [u8; 2], payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0; HEADER_BYTES];
    packet.extend(to);
    packet.extend(MAC.0);
    packet.extend(kind);
    packet.extend(payload);
    packet
}

/// The question for the host's Ethernet address.
fn question() -> Vec<u8> {
    let mut question = vec![0, 1, 8, 0, 6, 4, 0, 1];
    question.extend(MAC.0);
    question.extend(GUEST);
    question.extend([0; 6]);
    question.extend(HOST);
    question
}

/// The checksum of the internet (RFC 1071).
fn checksum(bytes: &[u8]) -> [u8; 2] {
    let words = bytes
        .chunks(2)
        .map(|word| u32::from(word[0]) << 8 | u32::from(*word.get(1).unwrap_or(&0)));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!u16::try_from(sum).unwrap()).to_be_bytes()
}

#[test]
fn packets_go_both_ways() {
    if !own_network("packets_go_both_ways") {
        return;
    }
    let mut guest = Guest::new("vmsnap-n0", 2048, 16);
    let data: Vec<u8> = (0..1400_u32).map(|byte| byte.to_le_bytes()[0]).collect();
    assert_eq!(guest.ping(&data), (data, 1));
}

#[test]
fn a_packet_longer_than_a_buffer_is_laid_over_several() {
    if !own_network("a_packet_longer_than_a_buffer_is_laid_over_several") {
        return;
    }
    let mut guest = Guest::new("vmsnap-n1", 300, 64);
    let data: Vec<u8> = (0..1400_u32).map(|byte| byte.to_be_bytes()[3]).collect();
    let (echo, count) = guest.ping(&data);
    assert!(echo == data);
    // 12 + 14 + 20 + 8 + 1400 bytes in buffers of 300.
    assert_eq!(count, 5);
}

#[test]
fn without_buffers_packets_wait_for_the_guest() {
    if !own_network("without_buffers_packets_wait_for_the_guest") {
        return;
    }
    let mut guest = Guest::new("vmsnap-n2", 2048, 0);
    guest.ask_for_address();
    guest.offer_buffers(1);
    guest.address_answered();
}

#[test]
fn a_packet_that_arrives_in_a_pause_is_delivered_after_it() {
    if !own_network("a_packet_that_arrives_in_a_pause_is_delivered_after_it") {
        return;
    }
    let mut guest = Guest::new("vmsnap-n3", 2048, 16);
    guest.address_of_host();
    guest.ask_for_address();
    guest.driver.transport.pause().unwrap();
    while guest.driver.try_used(RX_QUEUE).is_some() {}
    guest.driver.transport.resume();
    guest.address_of_host();
}

#[test]
fn a_restored_guest_keeps_its_address_on_another_interface() {
    if !own_network("a_restored_guest_keeps_its_address_on_another_interface") {
        return;
    }
    let mut source = Guest::new("vmsnap-n4", 2048, 16);
    let first = source.address_of_host();
    source.driver.transport.pause().unwrap();
    let device = Net::new(&config("vmsnap-n5", None)).unwrap();
    let mut copy = Guest::of(source.driver.restored(device), 2048);
    copy.buffers.clone_from(&source.buffers);
    drop(source);
    set_up("vmsnap-n5", HOST);
    copy.driver.transport.resume();
    assert_eq!(copy.driver.config::<6>(0), MAC.0);
    assert_ne!(copy.address_of_host(), first, "another interface");
    assert_eq!(copy.ping(b"still here").0, b"still here");
}

#[test]
fn the_driver_reads_address_and_mtu() {
    if !own_network("the_driver_reads_address_and_mtu") {
        return;
    }
    let guest = Guest::new("vmsnap-n6", 2048, 0);
    assert_eq!(guest.driver.config::<6>(0), MAC.0);
    assert_eq!(u16::from_le_bytes(guest.driver.config::<2>(10)), 1500);
}

#[test]
fn a_state_with_an_mtu_that_cannot_be_or_no_address_is_refused() {
    let good = NetState { mac: MAC, mtu: 1500 };
    let mut known = good;
    let mut restore = |state: &Value| known.restore(1, 1, state, "tap").is_ok();
    assert!(restore(&to_value(&good).unwrap()));
    assert!(!restore(&to_value(&NetState { mtu: 67, ..good }).unwrap()));
    let mut state = to_value(&good).unwrap();
    *crate::driver::field(&mut state, "mac") = Value::Text("52:54:00".to_owned());
    assert!(!restore(&state));
}

#[test]
fn a_made_up_address_is_local_and_not_of_a_group() {
    for _ in 0..100 {
        assert_eq!(random_mac().unwrap().0[0] & 3, 2);
    }
}

#[test]
fn packets_too_short_or_too_long_are_dropped_and_the_device_works_on() {
    if !own_network("packets_too_short_or_too_long_are_dropped_and_the_device_works_on") {
        return;
    }
    let mut guest = Guest::new("vmsnap-n7", 2048, 16);
    guest.send_raw(&[1; 5]);
    guest.send_raw(&[0; HEADER_BYTES]);
    guest.send_raw(&vec![0xff; 100 << 10]);
    guest.address_of_host();
}

#[test]
fn a_buffer_outside_memory_makes_the_device_ask_for_a_reset() {
    if !own_network("a_buffer_outside_memory_makes_the_device_ask_for_a_reset") {
        return;
    }
    let mut guest = Guest::new("vmsnap-n8", 2048, 0);
    guest.driver.add(RX_QUEUE, &[], &[(9 << 20, 2048)]);
    guest.driver.kick(RX_QUEUE);
    // The device may have stopped before it comes to take this.
    guest.post(&packet([0xff; 6], ARP, &question()));
    guest.driver.wait_needs_reset();
    guest.driver.probe(0);
    guest.buffers.clear();
    guest.offer_buffers(16);
    guest.address_of_host();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn no_packet_of_the_guest_stops_the_device(
        packets in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..200), 1..40),
    ) {
        if !own_network("no_packet_of_the_guest_stops_the_device") {
            return Ok(());
        }
        let mut guest = Guest::new("vmsnap-n9", 2048, 16);
        for packet in packets {
            guest.send_raw(&packet);
        }
        guest.address_of_host();
    }
}
