//! The network device: datagrams to all neighbours without end, counted where the driver gets their buffers back.
//!
//! Nobody answers. That packets leave says that the device serves its queue, also in a restored guest.

use std::fs;
use std::net::{Ipv6Addr, SocketAddrV6, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering::Relaxed;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, sendto, socket_with};

use super::health::Health;

const BREATH: Duration = Duration::from_millis(300);

/// All nodes of a link (RFC 4291, 2.7.1).
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

/// The port that discards (RFC 863).
const DISCARD: u16 = 9;

/// Sends by the network device, if there is one.
pub fn send(health: &Health) -> Result<()> {
    let Some(interface) = find()? else {
        return Ok(());
    };
    let number = |file: &str| -> Result<u64> {
        let text = fs::read_to_string(interface.join(file)).with_context(|| file.to_owned())?;
        text.trim().parse().with_context(|| file.to_owned())
    };
    let index = u32::try_from(number("ifindex")?)?;
    bring_up(index)?;
    let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)).context("a socket")?;
    let everyone = SocketAddrV6::new(ALL_NODES, DISCARD, 0, index);
    loop {
        // The interface has no address in its first seconds.
        let _too_early = socket.send_to(b"vmsnap", everyone);
        health.packets.store(number("statistics/tx_packets")?, Relaxed);
        thread::sleep(BREATH);
    }
}

/// Finds the interface that is a device.
fn find() -> Result<Option<PathBuf>> {
    for entry in fs::read_dir("/sys/class/net").context("the kernel's network interfaces")? {
        let path = entry?.path();
        if Path::new(&path).join("device").exists() {
            return Ok(Some(path));
        }
    }
    Ok(None)
}

/// Brings an interface up: RTM_NEWLINK with one flag changed (rtnetlink(7)).
fn bring_up(index: u32) -> Result<()> {
    const REQUEST_BYTES: u32 = 32;
    const RTM_NEWLINK: u16 = 16;
    const NLM_F_REQUEST: u16 = 1;
    const IFF_UP: u32 = 1;
    let mut request = Vec::new();
    request.extend(REQUEST_BYTES.to_ne_bytes());
    request.extend(RTM_NEWLINK.to_ne_bytes());
    request.extend(NLM_F_REQUEST.to_ne_bytes());
    // Sequence and sender, then family, padding and type: all may be 0.
    request.extend([0; 12]);
    request.extend(index.to_ne_bytes());
    request.extend(IFF_UP.to_ne_bytes());
    request.extend(IFF_UP.to_ne_bytes());
    // NETLINK_ROUTE is protocol 0, the default.
    let socket = socket_with(
        AddressFamily::NETLINK,
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        None,
    )
    .context("a netlink socket")?;
    sendto(
        &socket,
        &request,
        SendFlags::empty(),
        &SocketAddrNetlink::new(0, 0),
    )
    .context("bringing the interface up")?;
    Ok(())
}
