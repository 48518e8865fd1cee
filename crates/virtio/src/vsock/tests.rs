mod guest;
mod hostile;
mod restore;
mod vhost;

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};

use super::packet::{Operation, SHUTDOWN_BOTH};

use self::guest::{Guest, read_line};

#[test]
fn the_host_reaches_a_port_of_the_guest() {
    let mut guest = Guest::new();
    let (mut host, host_port) = guest.connected_from_host(52);
    assert!(host_port >= 1 << 30);
    host.write_all(b"ping").unwrap();
    assert_eq!(guest.data(), b"ping");
    guest.send(52, host_port, Operation::Data, b"pong");
    let mut answer = [0; 4];
    host.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"pong");
}

#[test]
fn the_guest_reaches_a_service_of_the_host() {
    let mut guest = Guest::new();
    let service = UnixListener::bind(guest.path_of_service(1000)).unwrap();
    guest.send(7, 1000, Operation::Request, b"");
    assert_eq!(guest.receive().0.operation, Operation::Response);
    let (mut host, _) = service.accept().unwrap();
    guest.send(7, 1000, Operation::Data, b"hello");
    let mut text = [0; 5];
    host.read_exact(&mut text).unwrap();
    assert_eq!(&text, b"hello");
    host.write_all(b"welcome").unwrap();
    assert_eq!(guest.data(), b"welcome");
    guest.send_flags(7, 1000, Operation::Shutdown, SHUTDOWN_BOTH);
    assert_eq!(guest.receive().0.operation, Operation::Reset);
    assert_eq!(host.read(&mut text).unwrap(), 0);
}

#[test]
fn a_service_that_is_not_there_refuses() {
    let mut guest = Guest::new();
    guest.send(7, 1000, Operation::Request, b"");
    let (header, _) = guest.receive();
    assert_eq!(header.operation, Operation::Reset);
    assert_eq!((header.src_port, header.dst_port), (1000, 7));
}

#[test]
fn a_guest_that_refuses_closes_the_hosts_socket() {
    let mut guest = Guest::new();
    let mut host = UnixStream::connect(guest.path()).unwrap();
    host.write_all(b"CONNECT 52\n").unwrap();
    let (request, _) = guest.receive();
    guest.send(52, request.src_port, Operation::Reset, b"");
    assert_eq!(host.read(&mut [0; 8]).unwrap(), 0);
}

#[test]
fn what_the_host_sends_to_a_guest_without_buffers_arrives_when_there_are_some() {
    let mut guest = Guest::without_buffers();
    let mut host = UnixStream::connect(guest.path()).unwrap();
    host.write_all(b"CONNECT 52\n").unwrap();
    guest.offer_buffers(1);
    let (request, _) = guest.receive();
    guest.send(52, request.src_port, Operation::Response, b"");
    read_line(&mut host);
    host.write_all(b"later").unwrap();
    guest.offer_buffers(1);
    assert_eq!(guest.data(), b"later");
}

#[test]
fn a_pause_keeps_what_the_host_has_sent() {
    let mut guest = Guest::new();
    let (mut host, host_port) = guest.connected_from_host(52);
    guest.driver.transport.pause().unwrap();
    host.write_all(b"meanwhile").unwrap();
    guest.send(52, host_port, Operation::Data, b"so what");
    assert!(guest.driver.try_used(0).is_none());
    guest.driver.transport.resume();
    assert_eq!(guest.data(), b"meanwhile");
    let mut text = [0; 7];
    host.read_exact(&mut text).unwrap();
    assert_eq!(&text, b"so what");
}

#[test]
fn megabytes_arrive_in_order_in_both_directions() {
    let mut guest = Guest::new();
    let (host, host_port) = guest.connected_from_host(52);
    let bytes: Vec<u8> = (0..1_u32 << 18)
        .flat_map(|number| (number * 7).to_le_bytes())
        .collect();
    let mut sender = host.try_clone().unwrap();
    let mut reader = host;
    let len = bytes.len();
    let to_guest = bytes.clone();
    let sending = std::thread::spawn(move || sender.write_all(&to_guest));
    let receiving = std::thread::spawn(move || {
        let mut all = vec![0; len];
        reader.read_exact(&mut all).map(|()| all)
    });
    let mut got = Vec::new();
    let mut rest = bytes.as_slice();
    while got.len() < len || !rest.is_empty() {
        let room = guest.credit().min(rest.len()).min(4096);
        let (packet, after) = rest.split_at(room);
        if packet.is_empty() {
            got.extend(guest.data());
        } else {
            guest.send(52, host_port, Operation::Data, packet);
            rest = after;
        }
    }
    sending.join().unwrap().unwrap();
    assert!(got == bytes, "to the guest");
    assert!(receiving.join().unwrap().unwrap() == bytes, "to the host");
}

#[test]
fn a_reset_ends_the_connections_and_the_device_works_again() {
    let mut guest = Guest::new();
    let (mut host, _) = guest.connected_from_host(52);
    guest.restart();
    assert_eq!(host.read(&mut [0; 8]).unwrap(), 0);
    guest.connected_from_host(53);
}
