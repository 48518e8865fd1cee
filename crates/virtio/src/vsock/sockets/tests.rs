use std::io::Write;

use super::*;

fn pair() -> (UnixStream, Handshake) {
    let (host, ours) = UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    (host, Handshake::new(ours))
}

#[test]
fn the_first_line_names_the_port_and_nothing_behind_it_is_taken() {
    let (mut host, mut handshake) = pair();
    host.write_all(b"CONNECT 1024\nhello").unwrap();
    assert_eq!(handshake.read_port().unwrap(), Some(1024));
    let mut rest = [0; 5];
    handshake.into_stream().read_exact(&mut rest).unwrap();
    assert_eq!(&rest, b"hello");
}

#[test]
fn a_line_that_comes_in_pieces_is_waited_for() {
    let (mut host, mut handshake) = pair();
    assert_eq!(handshake.read_port().unwrap(), None);
    host.write_all(b"CONNECT 4294").unwrap();
    assert_eq!(handshake.read_port().unwrap(), None);
    host.write_all(b"967295\r\n").unwrap();
    assert_eq!(handshake.read_port().unwrap(), Some(u32::MAX));
}

#[test]
fn anything_but_a_port_is_refused() {
    for line in [
        "GET / HTTP/1.1\n",
        "CONNECT \n",
        "CONNECT -1\n",
        "CONNECT 4294967296\n",
        "CONNECT 1 2\n",
        "\n",
        "CONNECT\u{e9}5\n",
        "a line that goes on and on and on without an end",
    ] {
        let (mut host, mut handshake) = pair();
        host.write_all(line.as_bytes()).unwrap();
        let error = handshake.read_port().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{line:?}");
    }
}

#[test]
fn a_host_that_leaves_without_a_word_is_noticed() {
    let (host, mut handshake) = pair();
    drop(host);
    assert_eq!(
        handshake.read_port().unwrap_err().kind(),
        io::ErrorKind::UnexpectedEof
    );
}

#[test]
fn a_socket_in_use_is_not_taken_away_and_an_abandoned_one_is_replaced() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("vsock");
    let first = Listener::bind(&path).unwrap();
    assert_eq!(
        Listener::bind(&path).unwrap_err().kind(),
        io::ErrorKind::AddrInUse
    );
    drop(first);
    assert!(!path.exists());
    drop(UnixListener::bind(&path).unwrap());
    assert!(
        path.exists(),
        "a listener of the standard library leaves its file"
    );
    Listener::bind(&path).unwrap();
}

#[test]
fn a_service_whose_queue_is_full_is_no_service() {
    let directory = tempfile::tempdir().unwrap();
    let listener = Listener::bind(&directory.path().join("vsock")).unwrap();
    assert!(listener.connect_service(7).is_none());
    let service = UnixListener::bind(directory.path().join("vsock_7")).unwrap();
    rustix::net::listen(&service, 0).unwrap();
    // Nobody accepts: sooner or later there is no room, and the call returns all the same.
    let connected: Vec<_> = (0..64).map_while(|_| listener.connect_service(7)).collect();
    assert!((1..64).contains(&connected.len()), "{}", connected.len());
}
