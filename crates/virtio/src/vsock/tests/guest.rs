//! The guest's side of the device: packets over the rings of a test driver.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::config::VsockConfig;
use crate::device::VirtioDevice;
use crate::driver::Driver;
use crate::vsock::connection::BUFFER_BYTES;
use crate::vsock::packet::{HEADER_BYTES, HOST_CID, Header, Operation, TYPE_STREAM};
use crate::vsock::{RX_QUEUE, TX_QUEUE, Vsock};

pub(super) const CID: u32 = 42;
const BUFFER: u32 = 4096;
/// Places for packets of the guest.
const SLOTS: u64 = 160;
const SLOT_BYTES: u64 = 8192;

pub(super) struct Guest {
    pub(super) driver: Driver,
    cid: u32,
    directory: TempDir,
    /// Addresses of receive buffers by head.
    buffers: std::collections::HashMap<u16, u64>,
    outgoing: u64,
    slot: u64,
    /// Bytes received and sent on the connection, and what the device says that it has passed on.
    received: u32,
    sent: u32,
    passed_on: u32,
}

impl Guest {
    pub(super) fn new() -> Self {
        let mut guest = Self::without_buffers();
        guest.offer_buffers(64);
        guest
    }

    pub(super) fn without_buffers() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let driver = Driver::started(device(&directory), 0);
        Self::of(driver, directory)
    }

    /// The copy that a restore as `device` makes; still paused.
    pub(super) fn restored_as(&self, device: impl VirtioDevice + 'static, cid: u32) -> Self {
        let driver = self.driver.restored(device);
        let mut copy = Self::of(driver, tempfile::tempdir().unwrap());
        copy.buffers.clone_from(&self.buffers);
        copy.cid = cid;
        copy
    }

    /// A guest with a device of another kind.
    pub(super) fn with(device: impl VirtioDevice + 'static) -> Self {
        let driver = Driver::started(device, 0);
        let mut guest = Self::of(driver, tempfile::tempdir().unwrap());
        guest.offer_buffers(64);
        guest
    }

    fn of(mut driver: Driver, directory: TempDir) -> Self {
        let outgoing = driver.allocate(SLOTS * SLOT_BYTES);
        Self {
            driver,
            cid: CID,
            directory,
            buffers: std::collections::HashMap::new(),
            outgoing,
            slot: 0,
            received: 0,
            sent: 0,
            passed_on: 0,
        }
    }

    /// The copy that a restore of a snapshot makes, with a socket elsewhere; still paused.
    pub(super) fn restored(&self) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut copy = self.restored_as(device(&directory), CID);
        copy.directory = directory;
        copy
    }

    /// Resets the device and probes it again.
    pub(super) fn restart(&mut self) {
        self.driver.probe(0);
        self.buffers.clear();
        self.offer_buffers(64);
    }

    pub(super) fn path(&self) -> PathBuf {
        self.directory.path().join("vsock")
    }

    pub(super) fn path_of_service(&self, port: u32) -> PathBuf {
        self.directory.path().join(format!("vsock_{port}"))
    }

    pub(super) fn offer_buffers(&mut self, count: u32) {
        for _ in 0..count {
            let address = self.driver.allocate(BUFFER.into());
            let head = self.driver.add(RX_QUEUE, &[], &[(address, BUFFER)]);
            self.buffers.insert(head, address);
        }
        self.driver.kick(RX_QUEUE);
    }

    /// The next packet of the device; its buffer is given back.
    pub(super) fn receive(&mut self) -> (Header, Vec<u8>) {
        let used = self.driver.used(RX_QUEUE);
        self.take(used)
    }

    pub(super) fn try_receive(&mut self) -> Option<(Header, Vec<u8>)> {
        let used = self.driver.try_used(RX_QUEUE)?;
        Some(self.take(used))
    }

    fn take(&mut self, (head, written): (u16, u32)) -> (Header, Vec<u8>) {
        let address = self.buffers.remove(&head).unwrap();
        let mut bytes = self.driver.load(address, written as usize);
        let payload = bytes.split_off(HEADER_BYTES);
        let header = Header::from_bytes(&bytes.try_into().unwrap());
        assert_eq!(header.len as usize, payload.len());
        assert_eq!((header.src_cid, header.dst_cid), (HOST_CID, self.cid.into()));
        self.passed_on = header.fwd_cnt;
        self.received = self.received.wrapping_add(header.len);
        let head = self.driver.add(RX_QUEUE, &[], &[(address, BUFFER)]);
        self.buffers.insert(head, address);
        self.driver.kick(RX_QUEUE);
        (header, payload)
    }

    /// The payload of the next packet with data; questions for credit on the way are answered.
    pub(super) fn data(&mut self) -> Vec<u8> {
        loop {
            let (header, payload) = self.receive();
            match header.operation {
                Operation::Data => {
                    self.send(header.dst_port, header.src_port, Operation::CreditUpdate, b"");
                    return payload;
                }
                Operation::CreditUpdate => return Vec::new(),
                Operation::CreditRequest => {
                    self.send(header.dst_port, header.src_port, Operation::CreditUpdate, b"");
                }
                other => panic!("{other:?} instead of data"),
            }
        }
    }

    /// Bytes that the guest may send, by what it knows.
    pub(super) fn credit(&self) -> usize {
        (BUFFER_BYTES - self.sent.wrapping_sub(self.passed_on)) as usize
    }

    pub(super) fn send(&mut self, from: u32, to: u32, operation: Operation, payload: &[u8]) {
        let header = Header {
            len: u32::try_from(payload.len()).unwrap(),
            ..self.header(from, to, operation)
        };
        self.sent = self.sent.wrapping_add(header.len);
        self.send_raw(&header.to_bytes(), payload);
    }

    pub(super) fn send_flags(&mut self, from: u32, to: u32, operation: Operation, flags: u32) {
        let header = Header {
            flags,
            ..self.header(from, to, operation)
        };
        self.send_raw(&header.to_bytes(), b"");
    }

    pub(super) fn header(&self, from: u32, to: u32, operation: Operation) -> Header {
        Header {
            src_cid: self.cid.into(),
            dst_cid: HOST_CID,
            src_port: from,
            dst_port: to,
            len: 0,
            socket_type: TYPE_STREAM,
            operation,
            flags: 0,
            buf_alloc: 256 << 10,
            fwd_cnt: self.received,
        }
    }

    /// Sends a packet, header and payload in a descriptor each.
    pub(super) fn send_raw(&mut self, header: &[u8], payload: &[u8]) {
        while self.driver.try_used(TX_QUEUE).is_some() {}
        while self.driver.rings[TX_QUEUE].room() < 2 {
            self.driver.used(TX_QUEUE);
        }
        // Packets that the device has not taken yet stay as they are: there are more slots than entries.
        self.slot = (self.slot + 1) % SLOTS;
        let first = self.outgoing + self.slot * SLOT_BYTES;
        let second = first + 256;
        self.driver.store(first, header);
        self.driver.store(second, payload);
        let mut pieces = vec![(first, u32::try_from(header.len()).unwrap())];
        if !payload.is_empty() {
            pieces.push((second, u32::try_from(payload.len()).unwrap()));
        }
        self.driver.add(TX_QUEUE, &pieces, &[]);
        self.driver.kick(TX_QUEUE);
    }

    /// A connection of the host to `port` that the guest has granted, and the host's port.
    pub(super) fn connected_from_host(&mut self, port: u32) -> (UnixStream, u32) {
        let mut host = UnixStream::connect(self.path()).unwrap();
        host.write_all(format!("CONNECT {port}\n").as_bytes()).unwrap();
        let (request, _) = self.receive();
        assert_eq!(request.operation, Operation::Request);
        assert_eq!(request.dst_port, port);
        self.sent = 0;
        self.received = 0;
        self.send(port, request.src_port, Operation::Response, b"");
        assert_eq!(read_line(&mut host), format!("OK {}\n", request.src_port));
        (host, request.src_port)
    }
}

fn device(directory: &TempDir) -> Vsock {
    Vsock::new(&config(&directory.path().join("vsock"))).unwrap()
}

pub(super) fn config(path: &Path) -> VsockConfig {
    VsockConfig {
        cid: CID,
        uds: Some(path.to_owned()),
        vhost: false,
    }
}

pub(super) fn read_line(host: &mut UnixStream) -> String {
    let mut line = Vec::new();
    while line.last() != Some(&b'\n') {
        let mut byte = [0];
        host.read_exact(&mut byte).unwrap();
        line.extend(byte);
    }
    String::from_utf8(line).unwrap()
}
