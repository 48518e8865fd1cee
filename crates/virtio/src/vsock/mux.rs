//! All connections of one guest, and the Unix sockets through which the host reaches them.
//!
//! The host connects to the device's socket and writes `CONNECT port\n`; it is answered `OK port\n` with the
//! port that stands for it, and has a stream to that port of the guest. A guest that connects to port P of the
//! host reaches the socket whose path is the device's with `_P` appended. This is the protocol that other
//! monitors' tools speak already.
//!
//! Everything is bounded, and nothing blocks: the sockets are watched by one epoll instance of the
//! multiplexer's own, edge-triggered, which is itself watched by whoever serves the queues.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::event::epoll;

use super::connection::Connection;
use super::packet::{HOST_CID, Header, Operation, TYPE_STREAM};
use super::sockets::{Handshake, Listener};

/// Most connections of a guest at once; with their buffers, 64 MiB.
pub const MAX_CONNECTIONS: usize = 512;
/// Most host sockets that have connected and not yet said to which port.
const MAX_HANDSHAKES: usize = 64;
/// Most refusals that wait for a receive buffer; when they are that many, the guest's packets wait.
const MAX_REFUSALS: usize = 256;
/// Host ports of connections that the host asks for begin here, out of the way of services.
const FIRST_HOST_PORT: u32 = 1 << 30;
/// Events taken from the kernel at once.
const EVENTS: usize = 64;
/// Event token of the listening socket; every other is given out once.
const LISTENER: u64 = 0;

/// What tells connections apart: the port of the host and the port of the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    host_port: u32,
    guest_port: u32,
}

#[derive(Debug)]
struct Entry {
    connection: Connection,
    token: u64,
    /// It stands in the list of those that may have a packet.
    listed: bool,
}

#[derive(Debug)]
enum Source {
    Handshake(Handshake),
    Connection(Key),
}

/// Connections, listening socket and refusals of one guest.
#[derive(Debug)]
pub struct Mux {
    guest_cid: u64,
    listener: Option<Listener>,
    epoll: OwnedFd,
    sources: HashMap<u64, Source>,
    handshakes: usize,
    connections: HashMap<Key, Entry>,
    /// Connections that may have a packet for the guest, in turn.
    ready: VecDeque<Key>,
    refusals: VecDeque<Header>,
    next_host_port: u32,
    next_token: u64,
}

impl Mux {
    /// A multiplexer without connections; with no `listener`, the guest can reach nobody and nobody the guest.
    ///
    /// # Errors
    /// What the kernel says to a new epoll instance.
    pub fn new(guest_cid: u32, listener: Option<Listener>) -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        if let Some(listener) = &listener {
            let events = epoll::EventFlags::IN | epoll::EventFlags::ET;
            epoll::add(&epoll, listener, epoll::EventData::new_u64(LISTENER), events)?;
        }
        Ok(Mux {
            guest_cid: guest_cid.into(),
            listener,
            epoll,
            sources: HashMap::new(),
            handshakes: 0,
            connections: HashMap::new(),
            ready: VecDeque::new(),
            refusals: VecDeque::new(),
            next_host_port: FIRST_HOST_PORT,
            next_token: LISTENER + 1,
        })
    }

    /// The host port that the next connection from the host gets, if it is free.
    pub fn next_host_port(&self) -> u32 {
        self.next_host_port
    }

    /// Continues a sequence of host ports, so that a restored guest sees none twice.
    pub fn set_next_host_port(&mut self, port: u32) {
        self.next_host_port = port.max(FIRST_HOST_PORT);
    }

    /// Ends all connections; the guest is not told.
    pub fn forget_connections(&mut self) {
        self.connections.clear();
        self.ready.clear();
        self.refusals.clear();
        self.sources
            .retain(|_, source| matches!(source, Source::Handshake(_)));
    }

    /// Whether a packet of the guest can be taken; otherwise it has to take packets first.
    pub fn can_receive(&self) -> bool {
        self.refusals.len() < MAX_REFUSALS
    }

    /// Whether there may be a packet for the guest.
    pub fn has_packet(&self) -> bool {
        !self.refusals.is_empty() || !self.ready.is_empty()
    }

    /// Takes a packet of the guest. Packets that make no sense are refused, as the standard asks.
    pub fn receive(&mut self, header: &Header, payload: &[u8]) {
        if header.src_cid != self.guest_cid {
            // A reply would go to somebody else, whom we do not know.
            tracing::debug!(cid = header.src_cid, "vsock packet with a wrong source dropped");
            return;
        }
        let key = Key {
            host_port: header.dst_port,
            guest_port: header.src_port,
        };
        let sensible = header.dst_cid == HOST_CID && header.socket_type == TYPE_STREAM;
        if sensible && header.operation == Operation::Request {
            self.accept(key, header);
        } else if let Some(entry) = self.connections.get_mut(&key).filter(|_| sensible) {
            entry.connection.receive(header, payload, key.host_port);
            self.list_or_forget(key);
        } else {
            self.refuse(header);
        }
    }

    /// The next packet for the guest, its payload at the start of `payload`.
    pub fn next_packet(&mut self, payload: &mut [u8]) -> Option<Header> {
        if let Some(refusal) = self.refusals.pop_front() {
            return Some(refusal);
        }
        while let Some(key) = self.ready.pop_front() {
            let Some(entry) = self.connections.get_mut(&key) else {
                continue;
            };
            entry.listed = false;
            let outgoing = entry.connection.next_packet(payload);
            let header = outgoing.map(|outgoing| Header {
                src_cid: HOST_CID,
                dst_cid: self.guest_cid,
                src_port: key.host_port,
                dst_port: key.guest_port,
                len: u32::try_from(outgoing.len).unwrap_or(u32::MAX),
                socket_type: TYPE_STREAM,
                operation: outgoing.operation,
                flags: outgoing.flags,
                buf_alloc: super::connection::BUFFER_BYTES,
                fwd_cnt: entry.connection.forwarded(),
            });
            if entry.connection.is_over() {
                self.forget(key);
            } else if header.is_some() {
                // To the end of the list, so that no connection waits for another.
                self.list_or_forget(key);
            }
            if header.is_some() {
                return header;
            }
        }
        None
    }

    /// Looks at the host's sockets, without waiting: new connections, data, room, ends. What there is beyond
    /// one round keeps the epoll instance ready.
    pub fn poll_sockets(&mut self) {
        let mut events = Vec::with_capacity(EVENTS);
        let now = rustix::time::Timespec::default();
        match epoll::wait(
            &self.epoll,
            rustix::buffer::spare_capacity(&mut events),
            Some(&now),
        ) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => tracing::warn!(%error, "cannot look at the sockets of the vsock device"),
        }
        for event in &events {
            let flags = event.flags;
            let hung_up = flags.intersects(epoll::EventFlags::HUP | epoll::EventFlags::ERR);
            self.socket_event(event.data.u64(), hung_up);
        }
    }

    fn socket_event(&mut self, token: u64, hung_up: bool) {
        if token == LISTENER {
            self.take_newcomers();
            return;
        }
        match self.sources.get_mut(&token) {
            Some(Source::Handshake(handshake)) => {
                let port = handshake.read_port();
                self.finish_handshake(token, port);
            }
            Some(&mut Source::Connection(key)) => {
                if let Some(entry) = self.connections.get_mut(&key) {
                    entry.connection.socket_event(hung_up);
                    self.list_or_forget(key);
                }
            }
            None => {}
        }
    }

    /// Accepts whoever has connected to the device's socket, until nobody is left.
    fn take_newcomers(&mut self) {
        while let Some(stream) = self.listener.as_ref().and_then(Listener::accept) {
            if self.handshakes >= MAX_HANDSHAKES {
                tracing::debug!("too many host connections without a port; one dropped");
                continue;
            }
            let token = self.new_token();
            if watch(&self.epoll, &stream, token).is_err() {
                continue;
            }
            self.handshakes += 1;
            self.sources
                .insert(token, Source::Handshake(Handshake::new(stream)));
        }
    }

    /// The host has said (or not yet, or never will) to which port it wants.
    fn finish_handshake(&mut self, token: u64, port: io::Result<Option<u32>>) {
        if matches!(port, Ok(None)) {
            return;
        }
        let Some(Source::Handshake(handshake)) = self.sources.remove(&token) else {
            return;
        };
        self.handshakes -= 1;
        let guest_port = match port {
            Ok(Some(guest_port)) => guest_port,
            Ok(None) => return,
            Err(error) => {
                tracing::debug!(%error, "host connection to the vsock device dropped");
                return;
            }
        };
        let Some(key) = self.free_key(guest_port) else {
            tracing::debug!(
                guest_port,
                "too many vsock connections; one of the host's dropped"
            );
            return;
        };
        // The socket is being watched under this token already.
        self.insert(key, Connection::requested(handshake.into_stream()), token);
    }

    /// A key with a host port that is not in use, if there is room for one more connection.
    fn free_key(&mut self, guest_port: u32) -> Option<Key> {
        if !self.make_room() {
            return None;
        }
        // There are fewer connections than ports, so a free one is found soon.
        loop {
            let key = Key {
                host_port: self.next_host_port,
                guest_port,
            };
            self.next_host_port = self.next_host_port.checked_add(1).unwrap_or(FIRST_HOST_PORT);
            if !self.connections.contains_key(&key) {
                return Some(key);
            }
        }
    }

    /// The guest asks for a connection to a service of the host.
    fn accept(&mut self, key: Key, request: &Header) {
        // The guest has forgotten an older connection between these ports, or it would not ask.
        self.forget(key);
        let stream = self
            .make_room()
            .then(|| self.listener.as_ref()?.connect_service(key.host_port))
            .flatten();
        let token = self.new_token();
        match stream.filter(|stream| watch(&self.epoll, stream, token).is_ok()) {
            Some(stream) => self.insert(key, Connection::accepted(stream, request), token),
            None => self.refuse(request),
        }
    }

    /// Whether there is room for a connection; if need be at the cost of one that has ended on one side.
    fn make_room(&mut self) -> bool {
        if self.connections.len() >= MAX_CONNECTIONS {
            let mut closing = self
                .connections
                .iter()
                .filter(|(_, entry)| entry.connection.is_closing());
            if let Some(key) = closing.next().map(|(key, _)| *key) {
                self.forget(key);
            }
        }
        self.connections.len() < MAX_CONNECTIONS
    }

    fn insert(&mut self, key: Key, connection: Connection, token: u64) {
        self.sources.insert(token, Source::Connection(key));
        let entry = Entry {
            connection,
            token,
            listed: false,
        };
        self.connections.insert(key, entry);
        self.list_or_forget(key);
    }

    fn list_or_forget(&mut self, key: Key) {
        let Some(entry) = self.connections.get_mut(&key) else {
            return;
        };
        if entry.connection.is_over() {
            self.forget(key);
        } else if !entry.listed {
            entry.listed = true;
            self.ready.push_back(key);
        }
    }

    /// Drops a connection with its socket, which ends the watch too.
    fn forget(&mut self, key: Key) {
        if let Some(entry) = self.connections.remove(&key) {
            self.sources.remove(&entry.token);
            if entry.listed {
                self.ready.retain(|listed| *listed != key);
            }
        }
    }

    /// Refuses a packet, unless it is itself a refusal.
    fn refuse(&mut self, header: &Header) {
        if header.operation != Operation::Reset && self.can_receive() {
            self.refusals.push_back(header.refusal());
        }
    }

    fn new_token(&mut self) -> u64 {
        let token = self.next_token;
        self.next_token += 1;
        token
    }
}

/// Watches a socket for everything, edge-triggered.
fn watch(epoll: &OwnedFd, stream: &UnixStream, token: u64) -> rustix::io::Result<()> {
    let events =
        epoll::EventFlags::IN | epoll::EventFlags::OUT | epoll::EventFlags::RDHUP | epoll::EventFlags::ET;
    epoll::add(epoll, stream, epoll::EventData::new_u64(token), events)
}

impl AsFd for Mux {
    /// The epoll instance, readable when [`Mux::poll_sockets`] has something to do.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }
}

#[cfg(test)]
mod tests;
