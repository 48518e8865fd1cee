//! A tap interface of the host: the other end of a network device.
//!
//! Owns the file of `/dev/net/tun` that is attached to one interface, by name: an interface that exists is
//! attached to, one that does not is created and goes away with the file. Every packet carries the header of
//! virtio 1.2, 5.1.6 in front ([`HEADER_BYTES`]), in both directions, so that checksums and segmentation that
//! were left to the other side are the kernel's business, not ours.
//!
//! What the interface is connected to (addresses, bridge, up or down) is left to whoever runs the machine.

#![expect(
    unsafe_code,
    reason = "the tap interface is set up by ioctls that no safe wrapper covers"
)]

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;

use rustix::net::{AddressFamily, SocketFlags, SocketType, netdevice};
use vmm_sys_util::ioctl::{ioctl_with_mut_ref, ioctl_with_ref, ioctl_with_val};

/// Bytes of `struct virtio_net_hdr` with `num_buffers`, as a device with `VIRTIO_F_VERSION_1` has it
/// (virtio 1.2, 5.1.6).
pub const HEADER_BYTES: usize = 12;

const TUN_PATH: &str = "/dev/net/tun";
/// Longest name of an interface, without the final zero (`IFNAMSIZ` in `linux/if.h`).
const MAX_NAME_BYTES: usize = libc::IFNAMSIZ - 1;

/// What went wrong with a tap interface.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TapError {
    /// The name cannot be that of an interface.
    #[error(
        "{name:?} is not a name of a network interface (1 to {MAX_NAME_BYTES} bytes, no slash, blank or '%')"
    )]
    Name {
        /// The name as given.
        name: String,
    },
    /// The host has no tap interfaces, or not for us.
    #[error("{TUN_PATH}: cannot open it for tap interface {name:?} (kernel module tun)")]
    Open {
        /// The interface that was asked for.
        name: String,
        /// What the kernel says.
        source: io::Error,
    },
    /// One step of the set-up was refused.
    #[error("tap interface {name:?}: {step}")]
    Setup {
        /// The interface.
        name: String,
        /// The step, with what it means when it fails in its usual way.
        step: &'static str,
        /// What the kernel says.
        source: io::Error,
    },
}

/// What the guest takes from the host without help: each is a feature it has accepted (virtio 1.2, 5.1.3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offloads {
    /// Packets whose checksum is not filled in (`VIRTIO_NET_F_GUEST_CSUM`).
    pub checksum: bool,
    /// TCP over IPv4 in packets longer than the MTU (`VIRTIO_NET_F_GUEST_TSO4`).
    pub tso4: bool,
    /// TCP over IPv6 in packets longer than the MTU (`VIRTIO_NET_F_GUEST_TSO6`).
    pub tso6: bool,
}

impl Offloads {
    /// The argument of `TUNSETOFFLOAD`. The kernel refuses segmentation without checksums.
    fn bits(self) -> libc::c_uint {
        let mut bits = 0;
        if self.checksum {
            bits |= libc::TUN_F_CSUM;
            if self.tso4 {
                bits |= libc::TUN_F_TSO4;
            }
            if self.tso6 {
                bits |= libc::TUN_F_TSO6;
            }
        }
        bits
    }
}

/// An attached tap interface. Reading and writing never block.
#[derive(Debug)]
pub struct Tap {
    file: File,
    name: String,
}

impl Tap {
    /// Attaches to the interface of this name, or creates it where there is none; a created interface is
    /// down, has no address and disappears with the file.
    ///
    /// # Errors
    /// [`TapError`]; creating needs `CAP_NET_ADMIN`, attaching needs to be the interface's owner.
    pub fn open(name: &str) -> Result<Self, TapError> {
        let mut request = request_for(name)?;
        request.ifr_ifru.ifru_flags = interface_flags();
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(TUN_PATH)
            .map_err(|source| TapError::Open {
                name: name.to_owned(),
                source,
            })?;
        let tap = Tap {
            file,
            name: name.to_owned(),
        };
        // SAFETY: TUNSETIFF reads and writes one ifreq, which `request` is, and which outlives the call.
        let result = unsafe { ioctl_with_mut_ref(&tap.file, libc::TUNSETIFF, &mut request) };
        let step = if exists(name) {
            "cannot attach (in use by another process, owned by another user, or a multi-queue interface)"
        } else {
            "cannot create it (needs CAP_NET_ADMIN; or create it before with 'ip tuntap add')"
        };
        tap.checked(result, step)?;
        let header_bytes = libc::c_int::try_from(HEADER_BYTES).unwrap_or_default();
        // SAFETY: TUNSETVNETHDRSZ reads one int, which outlives the call.
        let result = unsafe { ioctl_with_ref(&tap.file, libc::TUNSETVNETHDRSZ, &header_bytes) };
        tap.checked(result, "cannot set the length of the packet header")?;
        Ok(tap)
    }

    /// Name of the interface.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file, as vhost-net takes it for a back end.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Lets the kernel hand over packets that need what `offloads` says, and no others.
    ///
    /// # Errors
    /// [`TapError::Setup`] where the kernel does not know one of them.
    pub fn set_offloads(&self, offloads: Offloads) -> Result<(), TapError> {
        // SAFETY: TUNSETOFFLOAD takes its argument by value and touches no memory of ours.
        let result = unsafe { ioctl_with_val(&self.file, libc::TUNSETOFFLOAD, offloads.bits().into()) };
        self.checked(result, "cannot set offloads")
    }

    /// The interface's MTU in bytes.
    ///
    /// # Errors
    /// [`TapError::Setup`] where the interface has been removed meanwhile.
    pub fn mtu(&self) -> Result<u16, TapError> {
        let step = "cannot read its MTU";
        let failed = |source| TapError::Setup {
            name: self.name.clone(),
            step,
            source,
        };
        let socket =
            rustix::net::socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)
                .map_err(|source| failed(source.into()))?;
        let mut request = request_for(&self.name)?;
        // SAFETY: SIOCGIFMTU reads and writes one ifreq, which `request` is, and which outlives the call.
        let result = unsafe { ioctl_with_mut_ref(&socket, libc::SIOCGIFMTU, &mut request) };
        self.checked(result, step)?;
        // SAFETY: the kernel has filled `ifru_mtu` in, and every bit pattern of it is an int.
        let mtu = unsafe { request.ifr_ifru.ifru_mtu };
        Ok(u16::try_from(mtu).unwrap_or(u16::MAX))
    }

    /// Takes the next packet with its header: its length, or nothing when there is none now.
    ///
    /// A packet longer than `buffer` is cut off.
    ///
    /// # Errors
    /// What the kernel says, for example that the interface has been removed.
    pub fn receive(&self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        match (&self.file).read(buffer) {
            Ok(len) => Ok(Some(len)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Gives a packet with its header to the host.
    ///
    /// # Errors
    /// What the kernel says: the header makes no sense, the interface is down, or its queue is full.
    pub fn send(&self, packet: &[u8]) -> io::Result<()> {
        // The whole packet goes or nothing does.
        (&self.file).write(packet).map(|_| ())
    }

    fn checked(&self, result: libc::c_int, step: &'static str) -> Result<(), TapError> {
        if result < 0 {
            return Err(TapError::Setup {
                name: self.name.clone(),
                step,
                source: io::Error::last_os_error(),
            });
        }
        Ok(())
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl AsRawFd for Tap {
    fn as_raw_fd(&self) -> i32 {
        self.file.as_raw_fd()
    }
}

/// Ethernet frames with the virtio header in front, no packet information.
fn interface_flags() -> libc::c_short {
    libc::c_short::try_from(libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR).unwrap_or_default()
}

/// Whether the host has an interface of this name.
fn exists(name: &str) -> bool {
    let socket = rustix::net::socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None);
    socket.is_ok_and(|socket| netdevice::name_to_index(socket, name).is_ok())
}

/// An all-zero request that names the interface.
fn request_for(name: &str) -> Result<libc::ifreq, TapError> {
    let refused = |byte: u8| byte == b'/' || byte == b'%' || byte == b':' || byte <= b' ' || byte > b'~';
    let special = name == "." || name == "..";
    if name.is_empty() || name.len() > MAX_NAME_BYTES || special || name.bytes().any(refused) {
        return Err(TapError::Name {
            name: name.to_owned(),
        });
    }
    // SAFETY: ifreq is a C structure of integers and a union of such; all zeros is a value of it.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (field, byte) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *field = libc::c_char::from_ne_bytes([byte]);
    }
    Ok(request)
}

#[cfg(test)]
pub(crate) mod tests;
