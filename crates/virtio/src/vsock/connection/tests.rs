use super::*;

const ROOM: u32 = 1 << 20;

fn header(operation: Operation, buf_alloc: u32, fwd_cnt: u32) -> Header {
    Header {
        src_cid: 3,
        dst_cid: 2,
        src_port: 1,
        dst_port: 2,
        len: 0,
        socket_type: 1,
        operation,
        flags: 0,
        buf_alloc,
        fwd_cnt,
    }
}

/// A connection that the guest asked for and that has been granted, and the host's end of it.
fn established(buf_alloc: u32) -> (UnixStream, Connection) {
    let (host, ours) = UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    let mut connection = Connection::accepted(ours, &header(Operation::Request, buf_alloc, 0));
    assert_eq!(next(&mut connection), Some((Operation::Response, 0, Vec::new())));
    (host, connection)
}

fn next(connection: &mut Connection) -> Option<(Operation, u32, Vec<u8>)> {
    let mut payload = vec![0; 64 << 10];
    let outgoing = connection.next_packet(&mut payload)?;
    payload.truncate(outgoing.len);
    Some((outgoing.operation, outgoing.flags, payload))
}

fn receive(connection: &mut Connection, operation: Operation, flags: u32, payload: &[u8]) {
    let header = Header {
        flags,
        ..header(operation, ROOM, 0)
    };
    connection.receive(&header, payload, 9);
}

fn operation(connection: &mut Connection) -> Option<Operation> {
    next(connection).map(|(operation, ..)| operation)
}

#[test]
fn the_host_gets_no_further_than_the_credit_of_the_guest() {
    let (mut host, mut connection) = established(10);
    host.write_all(b"0123456789abcdef").unwrap();
    connection.socket_event(false);
    assert_eq!(next(&mut connection).unwrap().2, b"0123456789");
    assert_eq!(operation(&mut connection), Some(Operation::CreditRequest));
    assert_eq!(operation(&mut connection), None, "asked once only");
    connection.receive(&header(Operation::CreditUpdate, 10, 3), &[], 9);
    assert_eq!(next(&mut connection).unwrap().2, b"abc");
    connection.receive(&header(Operation::CreditUpdate, 10, 13), &[], 9);
    assert_eq!(next(&mut connection).unwrap().2, b"def");
}

#[test]
fn credit_for_bytes_never_sent_is_no_credit() {
    let (mut host, mut connection) = established(10);
    host.write_all(b"0123456789").unwrap();
    connection.socket_event(false);
    connection.receive(&header(Operation::CreditUpdate, 10, 11), &[], 9);
    assert_eq!(operation(&mut connection), Some(Operation::CreditRequest));
    connection.receive(&header(Operation::CreditUpdate, u32::MAX, u32::MAX), &[], 9);
    assert_eq!(next(&mut connection).unwrap().2, b"0123456789");
}

#[test]
fn a_guest_that_sends_beyond_its_credit_loses_the_connection_and_we_no_memory() {
    let (_host, mut connection) = established(ROOM);
    let packet = vec![7; 64 << 10];
    let mut packets = 0;
    while operation(&mut connection) != Some(Operation::Reset) {
        receive(&mut connection, Operation::Data, 0, &packet);
        assert!(connection.buffer.len() <= BUFFER_BYTES as usize);
        packets += 1;
        assert!(packets < 1000, "the socket and the buffer are full long before");
    }
    assert!(connection.is_over());
}

#[test]
fn what_the_socket_does_not_take_waits_and_arrives_in_order() {
    let (mut host, mut connection) = established(ROOM);
    let mut sent = Vec::new();
    let mut number = 0_u32;
    while connection.buffer.is_empty() {
        let packet: Vec<u8> = (0..4096)
            .flat_map(|_| {
                number += 1;
                number.to_le_bytes()
            })
            .collect();
        receive(&mut connection, Operation::Data, 0, &packet);
        sent.extend(packet);
    }
    let before = connection.forwarded();
    let mut got = vec![0; sent.len()];
    let mut filled = 0;
    while filled < got.len() {
        filled += host.read(&mut got[filled..]).unwrap();
        connection.socket_event(false);
    }
    assert_eq!(got, sent);
    assert!(connection.forwarded() > before);
    assert_eq!(connection.forwarded() as usize, sent.len());
}

#[test]
fn the_guest_learns_of_new_room_before_it_runs_out() {
    let (mut host, mut connection) = established(ROOM);
    let packet = vec![1; 32 << 10];
    let mut updates = 0;
    for _ in 0..16 {
        receive(&mut connection, Operation::Data, 0, &packet);
        host.read_exact(&mut vec![0; packet.len()]).unwrap();
        while let Some(operation) = operation(&mut connection) {
            assert_eq!(operation, Operation::CreditUpdate);
            updates += 1;
        }
        let known = BUFFER_BYTES - (connection.forwarded - connection.announced).0;
        assert!(known >= CREDIT_LOW_BYTES);
    }
    assert!((4..=16).contains(&updates), "{updates}");
}

#[test]
fn a_guest_that_asks_for_credit_is_told() {
    let (_host, mut connection) = established(ROOM);
    receive(&mut connection, Operation::CreditRequest, 0, &[]);
    assert_eq!(operation(&mut connection), Some(Operation::CreditUpdate));
    assert_eq!(operation(&mut connection), None);
}

#[test]
fn an_end_by_the_guest_reaches_the_host_behind_the_data_and_is_answered_by_a_reset() {
    let (mut host, mut connection) = established(ROOM);
    receive(&mut connection, Operation::Data, 0, b"last words");
    receive(&mut connection, Operation::Shutdown, SHUTDOWN_BOTH, &[]);
    assert_eq!(operation(&mut connection), Some(Operation::Reset));
    assert!(connection.is_over());
    drop(connection);
    let mut text = String::new();
    host.read_to_string(&mut text).unwrap();
    assert_eq!(text, "last words");
}

#[test]
fn a_guest_that_only_stops_sending_can_still_receive() {
    let (mut host, mut connection) = established(ROOM);
    receive(&mut connection, Operation::Shutdown, SHUTDOWN_SEND, &[]);
    assert_eq!(host.read(&mut [0; 8]).unwrap(), 0, "the host reads the end");
    host.write_all(b"answer").unwrap();
    connection.socket_event(false);
    assert_eq!(next(&mut connection).unwrap().2, b"answer");
    receive(&mut connection, Operation::Data, 0, b"after the end");
    assert_eq!(operation(&mut connection), Some(Operation::Reset));
}

#[test]
fn a_host_that_only_stops_sending_is_told_from_one_that_has_gone() {
    let (host, mut connection) = established(ROOM);
    host.shutdown(Shutdown::Write).unwrap();
    connection.socket_event(false);
    assert_eq!(
        next(&mut connection),
        Some((Operation::Shutdown, SHUTDOWN_SEND, Vec::new()))
    );
    assert!(!connection.is_closing());
    drop(host);
    connection.socket_event(true);
    assert_eq!(
        next(&mut connection),
        Some((Operation::Shutdown, SHUTDOWN_BOTH, Vec::new()))
    );
    assert_eq!(next(&mut connection), None, "told once");
    assert!(connection.is_closing());
}

#[test]
fn the_last_data_of_a_host_that_has_gone_is_delivered() {
    let (mut host, mut connection) = established(ROOM);
    host.write_all(b"good-bye").unwrap();
    drop(host);
    connection.socket_event(true);
    assert_eq!(next(&mut connection).unwrap().2, b"good-bye");
    assert_eq!(
        next(&mut connection),
        Some((Operation::Shutdown, SHUTDOWN_BOTH, Vec::new()))
    );
}

#[test]
fn a_host_that_asks_is_greeted_when_the_guest_grants() {
    let (mut host, ours) = UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    let mut connection = Connection::requested(ours);
    assert_eq!(operation(&mut connection), Some(Operation::Request));
    assert_eq!(operation(&mut connection), None);
    receive(&mut connection, Operation::Response, 0, &[]);
    let mut line = [0; 5];
    host.read_exact(&mut line).unwrap();
    assert_eq!(&line, b"OK 9\n");
    host.write_all(b"x").unwrap();
    connection.socket_event(false);
    assert_eq!(next(&mut connection).unwrap().2, b"x");
    assert_eq!(connection.forwarded(), 0, "the greeting is not the guest's");
}

#[test]
fn a_host_that_leaves_before_the_answer_takes_its_request_back() {
    let (host, ours) = UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    let mut connection = Connection::requested(ours);
    assert_eq!(operation(&mut connection), Some(Operation::Request));
    drop(host);
    connection.socket_event(true);
    assert_eq!(operation(&mut connection), Some(Operation::Reset));
    assert!(connection.is_over());
}

#[test]
fn packets_out_of_turn_end_a_connection() {
    for wrong in [Operation::Response, Operation::Request, Operation::Unknown(99)] {
        let (_host, mut connection) = established(ROOM);
        receive(&mut connection, wrong, 0, &[]);
        assert_eq!(operation(&mut connection), Some(Operation::Reset), "{wrong:?}");
    }
    let (_host, ours) = UnixStream::pair().unwrap();
    let mut connection = Connection::requested(ours);
    receive(&mut connection, Operation::Response, 0, &[]);
    assert_eq!(
        operation(&mut connection),
        Some(Operation::Reset),
        "an answer before the question"
    );
}

#[test]
fn what_the_guest_sent_before_a_reset_still_arrives() {
    let (mut host, mut connection) = established(ROOM);
    let packet = vec![5; 64 << 10];
    let mut sent = 0;
    while connection.buffer.is_empty() {
        receive(&mut connection, Operation::Data, 0, &packet);
        sent += packet.len();
    }
    receive(&mut connection, Operation::Reset, 0, &[]);
    assert!(!connection.is_over());
    assert!(connection.is_closing());
    let mut got = 0;
    while got < sent {
        got += host.read(&mut vec![0; 64 << 10]).unwrap();
        connection.socket_event(false);
    }
    assert!(connection.is_over());
    assert_eq!(operation(&mut connection), None, "a reset is not answered");
}
