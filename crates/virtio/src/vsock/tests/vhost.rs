//! The same guest with the host's kernel carrying the packets.

use super::guest::{CID, Guest};
use super::restore::offer_event_buffers;
use crate::VhostVsock;
use crate::config::VsockConfig;
use crate::vsock::packet::Operation;
use crate::vsock::{EVENT_QUEUE, RX_QUEUE};

fn device(cid: u32) -> VhostVsock {
    VhostVsock::new(&VsockConfig {
        cid,
        uds: None,
        vhost: true,
    })
    .unwrap()
}

/// Shows that the kernel serves the guest: it refuses a connection to a port where nobody listens.
fn assert_served(guest: &mut Guest, port: u32) {
    guest.send(port, 4_000_000_000, Operation::Request, b"");
    loop {
        let (header, _) = guest.receive();
        assert_eq!(header.operation, Operation::Reset);
        if header.dst_port == port {
            return;
        }
    }
}

#[test]
fn the_kernel_goes_on_after_pauses_and_serves_a_copy_when_it_has_seen_the_notice() {
    let path = "/dev/vhost-vsock";
    if let Err(error) = std::fs::metadata(path) {
        let test = "the_kernel_goes_on_after_pauses_and_serves_a_copy_when_it_has_seen_the_notice";
        eprintln!("SKIPPED: {test}: {path}: {error}");
        return;
    }
    let mut source = Guest::with(device(CID));
    offer_event_buffers(&mut source, 8);
    for port in 0..20 {
        assert_served(&mut source, port);
        source.driver.transport.pause().unwrap();
        source.driver.transport.resume();
    }
    let taken = VhostVsock::new(&VsockConfig {
        cid: CID,
        uds: None,
        vhost: true,
    });
    assert!(taken.unwrap_err().to_string().contains("context id"));

    source.driver.transport.pause().unwrap();
    let mut copy = source.restored_as(device(CID + 1), CID + 1);
    copy.driver.transport.resume();
    assert_eq!(u64::from_le_bytes(copy.driver.config(0)), u64::from(CID) + 1);
    copy.send(100, 4_000_000_000, Operation::Request, b"");
    assert_eq!(copy.driver.used(EVENT_QUEUE).1, 4);
    assert!(copy.driver.try_used(RX_QUEUE).is_none(), "served before it knows");
    offer_event_buffers(&mut copy, 1);
    assert_served(&mut copy, 101);

    source.driver.transport.resume();
    assert_served(&mut source, 200);
    assert!(
        source.driver.try_used(EVENT_QUEUE).is_none(),
        "the source is not told"
    );
}
