use std::io::Write;
use std::os::unix::net::UnixListener;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tempfile::TempDir;

use super::*;
use crate::vsock::packet::HEADER_BYTES;

const CID: u32 = 42;

fn mux() -> (TempDir, Mux) {
    let directory = tempfile::tempdir().unwrap();
    let listener = Listener::bind(&directory.path().join("vsock")).unwrap();
    (directory, Mux::new(CID, Some(listener)).unwrap())
}

fn packet(from: u32, to: u32, operation: Operation) -> Header {
    Header {
        src_cid: CID.into(),
        dst_cid: HOST_CID,
        src_port: from,
        dst_port: to,
        len: 0,
        socket_type: TYPE_STREAM,
        operation,
        flags: 0,
        buf_alloc: 1 << 16,
        fwd_cnt: 0,
    }
}

fn next(mux: &mut Mux) -> Option<Operation> {
    mux.next_packet(&mut [0; 4096]).map(|header| header.operation)
}

/// Whether so many descriptors can be had.
fn has_descriptors(count: u64, test: &str) -> bool {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    let enough = limit.maximum.is_none_or(|maximum| maximum >= count);
    if !enough || setrlimit(Resource::Nofile, raised).is_err() {
        eprintln!("SKIPPED: {test}: fewer than {count} file descriptors");
        return false;
    }
    true
}

#[test]
fn connections_are_bounded_and_ended_ones_make_room() {
    if !has_descriptors(4096, "connections_are_bounded_and_ended_ones_make_room") {
        return;
    }
    let (directory, mut mux) = mux();
    let service = UnixListener::bind(directory.path().join("vsock_1")).unwrap();
    // The other end of each connection; the standard library's queue of a listener holds 128.
    let mut hosts = Vec::new();
    let count = u32::try_from(MAX_CONNECTIONS).unwrap();
    for port in 0..count {
        mux.receive(&packet(port, 1, Operation::Request), &[]);
        assert_eq!(next(&mut mux), Some(Operation::Response), "{port}");
        hosts.push(service.accept().unwrap().0);
    }
    mux.receive(&packet(count, 1, Operation::Request), &[]);
    assert_eq!(next(&mut mux), Some(Operation::Reset));
    drop(hosts.pop());
    // A round takes a few events only, and every socket has told that it can be written to.
    (0..MAX_CONNECTIONS).for_each(|_| mux.poll_sockets());
    while let Some(operation) = next(&mut mux) {
        assert_eq!(operation, Operation::Shutdown);
    }
    mux.receive(&packet(count, 1, Operation::Request), &[]);
    assert_eq!(next(&mut mux), Some(Operation::Response));
}

#[test]
fn hosts_that_say_nothing_are_bounded() {
    let (directory, mut mux) = mux();
    let path = directory.path().join("vsock");
    let mut silent = Vec::new();
    for _ in 0..MAX_HANDSHAKES {
        silent.push(UnixStream::connect(&path).unwrap());
        mux.poll_sockets();
    }
    let mut late = UnixStream::connect(&path).unwrap();
    mux.poll_sockets();
    assert_eq!(std::io::Read::read(&mut late, &mut [0]).unwrap(), 0, "closed");
    drop(silent.pop());
    mux.poll_sockets();
    let mut host = UnixStream::connect(&path).unwrap();
    host.write_all(b"CONNECT 5\n").unwrap();
    mux.poll_sockets();
    mux.poll_sockets();
    assert_eq!(next(&mut mux), Some(Operation::Request));
}

#[test]
fn a_busy_connection_does_not_hold_up_the_others() {
    let (directory, mut mux) = mux();
    let service = UnixListener::bind(directory.path().join("vsock_1")).unwrap();
    let mut hosts = Vec::new();
    for port in 0..4 {
        mux.receive(&packet(port, 1, Operation::Request), &[]);
        assert_eq!(next(&mut mux), Some(Operation::Response));
        hosts.push(service.accept().unwrap().0);
    }
    for host in &mut hosts {
        host.write_all(&[1; 16 << 10]).unwrap();
    }
    mux.poll_sockets();
    let ports: Vec<u32> = (0..8)
        .map(|_| mux.next_packet(&mut [0; 4096]).unwrap().dst_port)
        .collect();
    let (first, second) = ports.split_at(4);
    assert_eq!(first, second);
    let mut sorted = first.to_vec();
    sorted.sort_unstable();
    assert_eq!(sorted, [0, 1, 2, 3]);
}

#[test]
fn a_request_on_the_ports_of_an_old_connection_replaces_it() {
    let (directory, mut mux) = mux();
    let service = UnixListener::bind(directory.path().join("vsock_1")).unwrap();
    mux.receive(&packet(9, 1, Operation::Request), &[]);
    let mut old = service.accept().unwrap().0;
    mux.receive(&packet(9, 1, Operation::Request), &[]);
    let _new = service.accept().unwrap();
    assert_eq!(std::io::Read::read(&mut old, &mut [0]).unwrap(), 0);
    assert_eq!(next(&mut mux), Some(Operation::Response));
    assert_eq!(next(&mut mux), None);
}

#[test]
fn host_ports_wrap_around_and_pass_over_those_in_use() {
    let (directory, mut mux) = mux();
    mux.set_next_host_port(u32::MAX);
    let mut hosts = Vec::new();
    let mut ports = Vec::new();
    for _ in 0..3 {
        let mut host = UnixStream::connect(directory.path().join("vsock")).unwrap();
        host.write_all(b"CONNECT 5\n").unwrap();
        hosts.push(host);
        mux.poll_sockets();
        mux.poll_sockets();
        ports.push(mux.next_packet(&mut [0; HEADER_BYTES]).unwrap().src_port);
        if ports.len() == 2 {
            mux.set_next_host_port(u32::MAX);
        }
    }
    assert_eq!(ports, [u32::MAX, FIRST_HOST_PORT, FIRST_HOST_PORT + 1]);
}
