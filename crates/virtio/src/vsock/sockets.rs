//! The Unix sockets through which the host and the guest find each other.
//!
//! Owns the listening socket and its place in the file system, the first line that a host says on it, and the
//! way to a service of the host. Nothing here ever blocks.

use std::ffi::OsString;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::net::{AddressFamily, RecvFlags, SocketAddrUnix, SocketFlags, SocketType};

/// Longest first line, `CONNECT 4294967295\n`, with room to spare.
const MAX_LINE_BYTES: usize = 32;

/// The device's socket; its file goes away with it.
#[derive(Debug)]
pub struct Listener {
    socket: UnixListener,
    path: PathBuf,
}

impl Listener {
    /// Listens at `path`. A socket file that nobody listens at any more is replaced.
    ///
    /// # Errors
    /// What the kernel says, [`io::ErrorKind::AddrInUse`] where somebody listens there.
    pub fn bind(path: &Path) -> io::Result<Self> {
        let socket = match UnixListener::bind(path) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && is_abandoned(path) => {
                std::fs::remove_file(path)?;
                UnixListener::bind(path)
            }
            other => other,
        }?;
        socket.set_nonblocking(true)?;
        Ok(Listener {
            socket,
            path: path.to_owned(),
        })
    }

    /// The next of those who have connected.
    pub fn accept(&self) -> Option<UnixStream> {
        match self.socket.accept() {
            Ok((stream, _)) => stream.set_nonblocking(true).is_ok().then_some(stream),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
            Err(error) => {
                tracing::warn!(path = %self.path.display(), %error, "cannot accept a vsock connection");
                None
            }
        }
    }

    /// Connects to the service of the host at `port`: nothing if there is none or its queue is full.
    pub fn connect_service(&self, port: u32) -> Option<UnixStream> {
        let path = self.service_path(port);
        let connected = connect(&path);
        if let Err(error) = &connected {
            tracing::debug!(path = %path.display(), %error, "no service for the guest");
        }
        connected.ok()
    }

    fn service_path(&self, port: u32) -> PathBuf {
        let mut path = OsString::from(&self.path);
        path.push(format!("_{port}"));
        path.into()
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        // If somebody has removed it already, so much the better.
        let _ = std::fs::remove_file(&self.path);
    }
}

fn is_abandoned(path: &Path) -> bool {
    connect(path).is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
}

/// Connects without waiting for room in the listener's queue, as the standard library's call would.
fn connect(path: &Path) -> io::Result<UnixStream> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket.into())
}

/// A host that has connected and has not yet said to which port of the guest.
#[derive(Debug)]
pub struct Handshake {
    stream: UnixStream,
}

impl Handshake {
    /// Begins with a socket that does not block.
    pub fn new(stream: UnixStream) -> Self {
        Handshake { stream }
    }

    /// The socket, with all that follows the first line still in it.
    pub fn into_stream(self) -> UnixStream {
        self.stream
    }

    /// The port that the host asked for, or nothing as long as its line is not complete.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidData`] where the line is anything but `CONNECT port`;
    /// [`io::ErrorKind::UnexpectedEof`] where the host has left; what the kernel says.
    pub fn read_port(&mut self) -> io::Result<Option<u32>> {
        let mut line = [0; MAX_LINE_BYTES];
        let seen = match rustix::net::recv(&self.stream, &mut line[..], RecvFlags::PEEK) {
            Ok((0, _)) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok((seen, _)) => seen,
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let seen = line.get_mut(..seen).unwrap_or_default();
        let Some(end) = seen.iter().position(|byte| *byte == b'\n') else {
            return if seen.len() < MAX_LINE_BYTES {
                Ok(None)
            } else {
                Err(io::ErrorKind::InvalidData.into())
            };
        };
        // Only the line is taken out of the socket; what follows it is for the guest.
        let whole = seen.get_mut(..=end).unwrap_or_default();
        self.stream.read_exact(whole)?;
        parse_line(whole)
            .map(Some)
            .ok_or_else(|| io::ErrorKind::InvalidData.into())
    }
}

fn parse_line(line: &[u8]) -> Option<u32> {
    let text = std::str::from_utf8(line).ok()?.trim_end();
    let port = text
        .strip_prefix("CONNECT ")
        .or_else(|| text.strip_prefix("connect "))?;
    port.parse().ok()
}

#[cfg(test)]
mod tests;
