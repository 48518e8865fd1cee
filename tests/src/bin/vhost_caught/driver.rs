//! The driver of the device, in a thread that plays the guest: it takes the connection, checks the numbers
//! that arrive, and gives every buffer back at another place, so that the kernel writes all over memory.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;

use crate::Result;
use crate::rings::{self, Ring, SIZE};

/// Port of the guest that the client connects to.
pub const PORT: u32 = 1024;
const HOST_CID: u64 = 2;
/// Bytes of a packet's header (virtio 1.2, 5.10.6), and its operations.
const HEADER_BYTES: usize = 44;
const REQUEST: u16 = 1;
const RESPONSE: u16 = 2;
const DATA: u16 = 5;
const CREDIT_UPDATE: u16 = 6;
const CREDIT_REQUEST: u16 = 7;
/// Credit of the host: more than all receive buffers, so that all of them can be filled.
const CREDIT_BYTES: u32 = 1 << 20;
/// The host is told of its credit every so many bytes.
const CREDIT_STEP_BYTES: u32 = 64 << 10;
const PAGE_BYTES: u64 = 4096;
/// A prime, so that its multiples visit every page, and neighbours only after long.
const STRIDE: u64 = 1021;

/// The driver; whoever holds its lock keeps it from writing memory.
#[derive(Debug)]
pub struct Driver {
    memory: GuestMemoryMmap,
    cid: u64,
    receive: Ring,
    transmit: Ring,
    /// Where the receive buffers are, by slot.
    buffers: Vec<u64>,
    next_page: u64,
    sent: u16,
    /// The host's port, once it has connected.
    host_port: u32,
    bytes: u64,
    announced: u64,
    /// Bytes of a number that is not complete yet.
    rest: Vec<u8>,
    next_number: u64,
}

impl Driver {
    /// A driver that has given all its receive buffers to the device.
    pub fn new(memory: &GuestMemoryMmap, cid: u32, kicks: Vec<EventFd>) -> Result<Self> {
        let mut kicks = kicks.into_iter();
        let mut kick = || kicks.next().ok_or("a kick event is missing");
        let mut driver = Driver {
            memory: memory.clone(),
            cid: cid.into(),
            receive: Ring::new(memory, 0, kick()?),
            transmit: Ring::new(memory, 1, kick()?),
            buffers: vec![0; usize::from(SIZE)],
            next_page: 0,
            sent: 0,
            host_port: 0,
            bytes: 0,
            announced: 0,
            rest: Vec::new(),
            next_number: 0,
        };
        for slot in 0..SIZE {
            driver.offer(slot)?;
        }
        driver.receive.kick()?;
        Ok(driver)
    }

    /// Bytes of the stream that have arrived.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Index of the receive queue's used ring.
    pub fn received_index(&self) -> Result<u16> {
        self.receive.used_index()
    }

    /// Takes what has arrived, at most a ring's worth; tells whether there was anything.
    pub fn work(&mut self) -> Result<bool> {
        let mut any = false;
        for _ in 0..SIZE {
            let Some((slot, len)) = self.receive.take()? else {
                break;
            };
            any = true;
            let address = self
                .buffers
                .get(usize::from(slot))
                .ok_or("a slot that does not exist")?;
            let mut packet = vec![0; usize::try_from(len)?];
            self.memory.read_slice(&mut packet, GuestAddress(*address))?;
            self.take_packet(&packet)?;
            self.offer(slot)?;
        }
        if any {
            self.receive.kick()?;
        }
        Ok(any)
    }

    /// Gives the device a receive buffer at a place where none was for long.
    fn offer(&mut self, slot: u16) -> Result<()> {
        // Rings first, then the transmit buffers, then pages for receive buffers.
        let first = (rings::end(3) + u64::from(SIZE) * 64).div_ceil(PAGE_BYTES);
        let pages = (self.memory.last_addr().0 + 1) / PAGE_BYTES - first;
        let page = first + self.next_page.wrapping_mul(STRIDE) % pages;
        self.next_page += 1;
        let address = page * PAGE_BYTES;
        if let Some(buffer) = self.buffers.get_mut(usize::from(slot)) {
            *buffer = address;
        }
        self.receive
            .offer(slot, address, u32::try_from(PAGE_BYTES)?, true)
    }

    fn take_packet(&mut self, packet: &[u8]) -> Result<()> {
        let header = packet.get(..HEADER_BYTES).ok_or("a packet without a header")?;
        let operation = u16::from_le_bytes(header[30..32].try_into()?);
        match operation {
            REQUEST => {
                self.host_port = u32::from_le_bytes(header[16..20].try_into()?);
                self.send(RESPONSE)
            }
            DATA => self.take_numbers(packet.get(HEADER_BYTES..).unwrap_or_default()),
            CREDIT_REQUEST => self.send(CREDIT_UPDATE),
            CREDIT_UPDATE => Ok(()),
            other => Err(format!("the host sent a packet of operation {other}").into()),
        }
    }

    fn take_numbers(&mut self, payload: &[u8]) -> Result<()> {
        self.bytes += payload.len() as u64;
        self.rest.extend_from_slice(payload);
        let (numbers, rest) = self.rest.as_chunks::<8>();
        for number in numbers {
            let number = u64::from_le_bytes(*number);
            if number != self.next_number {
                return Err(format!("number {number} of the stream, expected {}", self.next_number).into());
            }
            self.next_number += 1;
        }
        self.rest = rest.to_vec();
        if self.bytes - self.announced >= u64::from(CREDIT_STEP_BYTES) {
            self.send(CREDIT_UPDATE)?;
        }
        Ok(())
    }

    /// Sends a packet without payload; every packet carries the credit.
    fn send(&mut self, operation: u16) -> Result<()> {
        while self.transmit.take()?.is_some() {}
        if self.transmit.is_full() {
            // The device is behind; a later packet tells the same.
            return Ok(());
        }
        let slot = self.sent % SIZE;
        self.sent = self.sent.wrapping_add(1);
        let address = rings::end(3) + u64::from(slot) * 64;
        let mut header = Vec::with_capacity(HEADER_BYTES);
        header.extend(self.cid.to_le_bytes());
        header.extend(HOST_CID.to_le_bytes());
        header.extend(PORT.to_le_bytes());
        header.extend(self.host_port.to_le_bytes());
        header.extend(0_u32.to_le_bytes());
        header.extend(1_u16.to_le_bytes());
        header.extend(operation.to_le_bytes());
        header.extend(0_u32.to_le_bytes());
        header.extend(CREDIT_BYTES.to_le_bytes());
        // Modulo 2^32, as the standard has it.
        header.extend(u32::try_from(self.bytes & u64::from(u32::MAX))?.to_le_bytes());
        self.memory.write_slice(&header, GuestAddress(address))?;
        self.transmit
            .offer(slot, address, u32::try_from(HEADER_BYTES)?, false)?;
        self.announced = self.bytes;
        self.transmit.kick()
    }
}

/// The thread that drives.
#[derive(Debug)]
pub struct Player {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<()>>,
}

impl Player {
    /// Starts to drive.
    pub fn start(driver: &Arc<Mutex<Driver>>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let driver = Arc::clone(driver);
        let thread = thread::spawn(move || {
            while !stopped.load(Ordering::Acquire) {
                // The lock is free between two batches, for whoever wants the driver to stand still.
                let any = driver.lock().unwrap_or_else(PoisonError::into_inner).work()?;
                if any {
                    thread::yield_now();
                } else {
                    thread::sleep(std::time::Duration::from_micros(200));
                }
            }
            Ok(())
        });
        Player { stop, thread }
    }

    /// Ends the thread; says what went wrong in it.
    pub fn stop(self) -> Result<()> {
        self.stop.store(true, Ordering::Release);
        self.thread.join().map_err(|_| "the driver panicked")?
    }
}
