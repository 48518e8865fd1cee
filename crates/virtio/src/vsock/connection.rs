//! One stream between a port of the guest and a Unix socket of the host.
//!
//! What the guest sends goes straight into the socket; what does not fit waits in a buffer whose size is the
//! credit given to the guest, so that it can never ask for more memory. What the host sends stays in the
//! socket until the guest has given credit for it: a device that is paused or has no buffers loses nothing.
//! Both sides are told of an end by halves, as sockets do it.
//!
//! Which packets belong to which connection is left to [`super::mux`].

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::num::Wrapping;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use super::packet::{Header, Operation, SHUTDOWN_BOTH, SHUTDOWN_RECEIVE, SHUTDOWN_SEND};

/// Credit that the guest has for each connection, and the most that waits here for a slow reader.
pub const BUFFER_BYTES: u32 = 128 << 10;
/// The guest is told of new room at the latest when less than this is left of its credit.
const CREDIT_LOW_BYTES: u32 = BUFFER_BYTES / 2;

/// A packet that the connection wants to send, without the addresses, which the multiplexer knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outgoing {
    /// What the packet is for.
    pub operation: Operation,
    /// Bits of a shutdown.
    pub flags: u32,
    /// Bytes of payload, which stand at the start of the caller's buffer.
    pub len: usize,
}

impl Outgoing {
    fn bare(operation: Operation) -> Self {
        Outgoing {
            operation,
            flags: 0,
            len: 0,
        }
    }
}

/// How far a connection has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The host asked for it; the request has or has not gone out.
    Requesting { sent: bool },
    /// Data may flow; the response to the guest's request has or has not gone out.
    Established { answered: bool },
    /// It is to end with a reset, at once: the answer to an end by the guest, and to every mistake.
    Ending,
    /// The guest has ended it; it is there only until the host has read what the guest sent.
    Orphan,
    /// Nothing more is to be done.
    Over,
}

/// One connection.
#[derive(Debug)]
pub struct Connection {
    stream: UnixStream,
    phase: Phase,
    /// What the guest sent and the socket has not taken yet.
    buffer: VecDeque<u8>,
    /// Bytes of the guest that went into the socket, modulo 2^32.
    forwarded: Wrapping<u32>,
    /// `forwarded` as the guest last heard of it.
    announced: Wrapping<u32>,
    /// Bytes that we have sent to the guest, modulo 2^32.
    sent: Wrapping<u32>,
    guest_buf_alloc: u32,
    guest_fwd_cnt: Wrapping<u32>,
    /// Directions that the guest has ended: bits of a shutdown.
    guest_ended: u32,
    /// Directions whose end the guest has been told of.
    host_ended: u32,
    /// The socket may have data, or its end.
    readable: bool,
    /// Nobody is at the other end of the socket.
    hung_up: bool,
    /// The guest wants to know its credit.
    credit_wanted: bool,
    /// The guest has been asked for credit and has not said anything since.
    credit_asked: bool,
}

impl Connection {
    /// A connection that the guest has asked for, with the socket that was found for it.
    pub fn accepted(stream: UnixStream, request: &Header) -> Self {
        let mut connection = Connection::new(stream, Phase::Established { answered: false });
        connection.note_credit(request);
        connection
    }

    /// A connection that the host asks for.
    pub fn requested(stream: UnixStream) -> Self {
        Connection::new(stream, Phase::Requesting { sent: false })
    }

    fn new(stream: UnixStream, phase: Phase) -> Self {
        Connection {
            stream,
            phase,
            buffer: VecDeque::new(),
            forwarded: Wrapping(0),
            announced: Wrapping(0),
            sent: Wrapping(0),
            guest_buf_alloc: 0,
            guest_fwd_cnt: Wrapping(0),
            guest_ended: 0,
            host_ended: 0,
            // The first look at the socket finds out.
            readable: true,
            hung_up: false,
            credit_wanted: false,
            credit_asked: false,
        }
    }

    /// Whether the connection can be forgotten.
    pub fn is_over(&self) -> bool {
        self.phase == Phase::Over
    }

    /// Whether both sides have been told that the host has gone: it may be forgotten when room is needed.
    pub fn is_closing(&self) -> bool {
        self.host_ended == SHUTDOWN_BOTH || self.phase == Phase::Orphan
    }

    /// Bytes that the socket has taken, for the header of every packet.
    pub fn forwarded(&self) -> u32 {
        self.forwarded.0
    }

    /// The socket has something to read, room to write, or nobody at its other end.
    pub fn socket_event(&mut self, hung_up: bool) {
        self.readable = true;
        self.hung_up |= hung_up;
        self.flush();
    }

    /// Takes a packet of the guest. `host_port` is told to the host when its request is granted.
    pub fn receive(&mut self, header: &Header, payload: &[u8], host_port: u32) {
        self.note_credit(header);
        match (header.operation, self.phase) {
            (_, Phase::Ending | Phase::Orphan | Phase::Over) => {}
            (Operation::Reset, _) => self.end_by_guest(),
            (Operation::Response, Phase::Requesting { sent: true }) => self.greet(host_port),
            (Operation::Data, Phase::Established { .. }) => self.take_data(payload),
            (Operation::Shutdown, Phase::Established { .. }) => self.take_shutdown(header.flags),
            (Operation::CreditUpdate, Phase::Established { .. }) => {}
            (Operation::CreditRequest, Phase::Established { .. }) => self.credit_wanted = true,
            _ => self.phase = Phase::Ending,
        }
    }

    /// The next packet for the guest, its payload at the start of `payload`; nothing if there is none now.
    pub fn next_packet(&mut self, payload: &mut [u8]) -> Option<Outgoing> {
        let outgoing = match self.phase {
            Phase::Ending => {
                self.phase = Phase::Over;
                Some(Outgoing::bare(Operation::Reset))
            }
            Phase::Requesting { sent: false } => {
                self.phase = Phase::Requesting { sent: true };
                Some(Outgoing::bare(Operation::Request))
            }
            Phase::Requesting { sent: true } => self.watch_requester(),
            Phase::Established { answered: false } => {
                self.phase = Phase::Established { answered: true };
                Some(Outgoing::bare(Operation::Response))
            }
            Phase::Established { answered: true } => self.next_of_established(payload),
            Phase::Orphan | Phase::Over => None,
        }?;
        // Every packet tells the guest its credit.
        self.announced = self.forwarded;
        self.credit_wanted = false;
        Some(outgoing)
    }

    /// A host that asked for a connection and left before the guest answered is not worth an answer.
    fn watch_requester(&mut self) -> Option<Outgoing> {
        self.hung_up.then(|| {
            self.phase = Phase::Over;
            Outgoing::bare(Operation::Reset)
        })
    }

    fn next_of_established(&mut self, payload: &mut [u8]) -> Option<Outgoing> {
        let outgoing = self.read_socket(payload);
        if outgoing.is_none() && self.credit_is_due() {
            return Some(Outgoing::bare(Operation::CreditUpdate));
        }
        outgoing
    }

    fn read_socket(&mut self, payload: &mut [u8]) -> Option<Outgoing> {
        let done = self.guest_ended & SHUTDOWN_RECEIVE != 0 || self.host_ended & SHUTDOWN_SEND != 0;
        if done && self.hung_up {
            return self.end_by_host(SHUTDOWN_BOTH);
        }
        if done || !self.readable {
            return None;
        }
        let credit = usize::try_from(self.guest_credit()).unwrap_or(usize::MAX);
        if credit == 0 {
            let ask = !self.credit_asked;
            self.credit_asked = true;
            return ask.then(|| Outgoing::bare(Operation::CreditRequest));
        }
        let room = credit.min(payload.len());
        let room = payload.get_mut(..room).filter(|room| !room.is_empty())?;
        match (&self.stream).read(room) {
            Ok(0) => {
                let both = if self.hung_up {
                    SHUTDOWN_BOTH
                } else {
                    SHUTDOWN_SEND
                };
                self.end_by_host(both)
            }
            Ok(len) => {
                self.sent += Wrapping(u32::try_from(len).unwrap_or(u32::MAX));
                Some(Outgoing {
                    operation: Operation::Data,
                    flags: 0,
                    len,
                })
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.readable = false;
                None
            }
            Err(_) => {
                self.phase = Phase::Over;
                Some(Outgoing::bare(Operation::Reset))
            }
        }
    }

    /// Tells the guest, once, which directions the host has ended.
    fn end_by_host(&mut self, ended: u32) -> Option<Outgoing> {
        let news = ended & !self.host_ended != 0;
        self.host_ended |= ended;
        news.then_some(Outgoing {
            operation: Operation::Shutdown,
            flags: self.host_ended,
            len: 0,
        })
    }

    /// How many bytes the guest can still take; a guest that lies about it gets at most what it claims.
    fn guest_credit(&self) -> u32 {
        self.guest_buf_alloc
            .saturating_sub((self.sent - self.guest_fwd_cnt).0)
    }

    fn note_credit(&mut self, header: &Header) {
        self.guest_buf_alloc = header.buf_alloc;
        self.guest_fwd_cnt = Wrapping(header.fwd_cnt);
        self.credit_asked = false;
    }

    /// Whether the guest asked for its credit, or runs short of it by what it knows.
    fn credit_is_due(&self) -> bool {
        let unannounced = (self.forwarded - self.announced).0;
        let waiting = u32::try_from(self.buffer.len()).unwrap_or(u32::MAX);
        let known = BUFFER_BYTES.saturating_sub(waiting.saturating_add(unannounced));
        self.credit_wanted || (unannounced > 0 && known < CREDIT_LOW_BYTES)
    }

    /// The guest grants what the host has asked for: the host learns it by a line of text.
    fn greet(&mut self, host_port: u32) {
        let line = format!("OK {host_port}\n");
        // A socket on which nothing was written yet has room for a line.
        let greeted = (&self.stream)
            .write(line.as_bytes())
            .is_ok_and(|len| len == line.len());
        self.phase = if greeted {
            Phase::Established { answered: true }
        } else {
            Phase::Ending
        };
    }

    fn take_data(&mut self, payload: &[u8]) {
        let waiting = self.buffer.len().saturating_add(payload.len());
        let within_credit = u32::try_from(waiting).is_ok_and(|waiting| waiting <= BUFFER_BYTES);
        if self.guest_ended & SHUTDOWN_SEND != 0 || !within_credit {
            self.phase = Phase::Ending;
            return;
        }
        let written = if self.buffer.is_empty() {
            self.write(payload)
        } else {
            Some(0)
        };
        let waits = written.and_then(|written| payload.get(written..));
        self.buffer.extend(waits.unwrap_or_default());
    }

    fn take_shutdown(&mut self, flags: u32) {
        self.guest_ended |= flags & SHUTDOWN_BOTH;
        if self.guest_ended & SHUTDOWN_RECEIVE != 0 {
            // The host gets an error for what nobody will read. That the socket is gone already is as good.
            let _ = self.stream.shutdown(Shutdown::Read);
        }
        self.flush();
    }

    /// The guest is done with the connection; what it had sent before it said so still goes to the host.
    fn end_by_guest(&mut self) {
        self.phase = Phase::Orphan;
        self.flush();
    }

    /// Gives the socket what it takes of `bytes`: how many that were, or nothing if it is broken.
    fn write(&mut self, bytes: &[u8]) -> Option<usize> {
        let written = match (&self.stream).write(bytes) {
            Ok(len) => len,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
            Err(_) => {
                self.phase = match self.phase {
                    Phase::Orphan | Phase::Over => Phase::Over,
                    _ => Phase::Ending,
                };
                return None;
            }
        };
        self.forwarded += Wrapping(u32::try_from(written).unwrap_or(u32::MAX));
        Some(written)
    }

    /// Moves what waits into the socket, then ends what the guest has ended.
    fn flush(&mut self) {
        let mut waiting = std::mem::take(&mut self.buffer);
        while !waiting.is_empty() {
            match self.write(waiting.as_slices().0) {
                Some(0) => {
                    self.buffer = waiting;
                    return;
                }
                Some(written) => drop(waiting.drain(..written)),
                None => return,
            }
        }
        match self.phase {
            Phase::Orphan => self.phase = Phase::Over,
            Phase::Established { .. } if self.guest_ended == SHUTDOWN_BOTH => self.phase = Phase::Ending,
            Phase::Established { .. } if self.guest_ended & SHUTDOWN_SEND != 0 => {
                // The host reads an end of file. That the socket is gone already is as good.
                let _ = self.stream.shutdown(Shutdown::Write);
            }
            _ => {}
        }
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

#[cfg(test)]
mod tests;
