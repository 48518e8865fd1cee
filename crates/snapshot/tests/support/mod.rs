//! Plain memory with fake disks: files that a thread writes whenever they are not held.
#![allow(dead_code, reason = "each test file uses a part of it")]

pub mod faulty;
pub mod live;
pub mod qemu;

use std::any::Any;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use snapshot::{
    DiskFault, DiskLayer, DiskSource, Fingerprint, InternalEntry, MachineRecord, Overlay, PlainMemory,
    Subject, WriterSteps,
};
use tempfile::TempDir;
use vm_memory::GuestMemoryMmap;
use vmm::{DevicesConfig, DiscardRoute, DiskConfig, FrozenFor, StateError, StatePart};

/// Length of a disk.
const DISK_BYTES: u64 = 24 << 20;

/// A file that stands for a disk.
#[derive(Debug, Clone)]
struct FakeDisk {
    config: DiskConfig,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    /// Held by each write, and by who holds the disk for as long as that takes.
    gate: Mutex<usize>,
    holds: AtomicU64,
    /// What the disk contained when it was held last.
    content: Mutex<Vec<u8>>,
    rest: AtomicBool,
    shrink: AtomicBool,
    ended: AtomicBool,
}

/// Takes one from the holders when it is dropped.
struct FakeHold(Arc<Shared>);

impl Drop for FakeHold {
    fn drop(&mut self) {
        *self.0.gate.lock().unwrap() -= 1;
    }
}

impl DiskSource for FakeDisk {
    fn config(&self) -> &DiskConfig {
        &self.config
    }

    fn file(&self) -> io::Result<File> {
        File::options()
            .read(true)
            .write(!self.config.readonly)
            .open(&self.config.file)
    }

    fn virtual_size_bytes(&self) -> u64 {
        DISK_BYTES
    }

    fn layers(&self) -> Vec<DiskLayer> {
        vec![DiskLayer {
            path: Some(self.config.file.clone()),
            format: self.config.format,
        }]
    }

    fn prepare_overlay(&self, _: &Path, _: &FrozenFor) -> Result<Box<dyn Overlay>, DiskFault> {
        Err("it is a fake".into())
    }

    fn create_internal_snapshot(&self, _: &str) -> Result<InternalEntry, DiskFault> {
        Err("it is a fake".into())
    }

    fn internal_fingerprint(&self, _: &str) -> Result<Fingerprint, DiskFault> {
        Err("it is a fake".into())
    }

    fn delete_internal_snapshot(&self, _: &str) -> Result<(), DiskFault> {
        Err("it is a fake".into())
    }

    fn hold(&self) -> Result<Box<dyn Any + Send>, DiskFault> {
        *self.shared.gate.lock().unwrap() += 1;
        self.shared.holds.fetch_add(1, Ordering::Relaxed);
        *self.shared.content.lock().unwrap() = fs::read(&self.config.file)?;
        if self.shared.shrink.load(Ordering::Relaxed) {
            self.file()?.set_len(4096)?;
        }
        Ok(Box::new(FakeHold(Arc::clone(&self.shared))))
    }
}

/// Memory and disks that belong together.
#[derive(Debug)]
pub struct WithDisks {
    memory: PlainMemory,
    disks: Vec<FakeDisk>,
    pub discard_route: DiscardRoute,
}

impl Subject for WithDisks {
    type State = WriterSteps;

    fn memory(&self) -> &GuestMemoryMmap {
        self.memory.memory()
    }

    fn is_running(&self) -> bool {
        self.memory.is_running()
    }

    fn pause(&self) -> Result<(), vmm::Error> {
        self.memory.pause()
    }

    fn resume(&self) -> Result<(), vmm::Error> {
        self.memory.resume()
    }

    fn save_state(&self) -> Result<WriterSteps, vmm::Error> {
        self.memory.save_state()
    }

    fn disks(&self) -> Vec<Arc<dyn DiskSource>> {
        let disks = self.disks.iter().cloned();
        disks.map(|disk| Arc::new(disk) as Arc<dyn DiskSource>).collect()
    }

    fn record(&self) -> MachineRecord {
        MachineRecord {
            devices: DevicesConfig {
                disks: self.disks.iter().map(|disk| disk.config.clone()).collect(),
                ..DevicesConfig::none()
            },
            ..MachineRecord::without_devices()
        }
    }

    fn discard_route(&self) -> Option<DiscardRoute> {
        Some(self.discard_route.clone())
    }

    fn encode(state: &WriterSteps) -> Result<Vec<StatePart>, StateError> {
        PlainMemory::encode(state)
    }
}

/// Writers of memory and of a disk at work, and a directory for their snapshots.
pub struct DiskScene {
    pub subject: WithDisks,
    directory: TempDir,
    writer: Option<JoinHandle<()>>,
}

impl DiskScene {
    /// Sets the scene with a writable disk `data` and a read-only one `cd`, unless memory cannot be protected here.
    pub fn set(test: &str, memory_bytes: u64) -> Option<Self> {
        if !Path::new("/dev/userfaultfd").exists() {
            eprintln!("SKIPPED: {test}: there is no /dev/userfaultfd");
            return None;
        }
        let directory = TempDir::new().unwrap();
        let disk = |id: &str, readonly| {
            let file = directory.path().join(id);
            File::create_new(&file).unwrap().set_len(DISK_BYTES).unwrap();
            FakeDisk {
                config: DiskConfig {
                    readonly,
                    ..DiskConfig::new(id, file)
                },
                shared: Arc::default(),
            }
        };
        let disks = vec![disk("data", false), disk("cd", true)];
        let writing = disks[0].clone();
        let writer = thread::spawn(move || write_disk(&writing));
        let memory = PlainMemory::new(memory_bytes, 2).unwrap();
        memory.resume().unwrap();
        while memory.steps() < 20_000 {
            thread::yield_now();
        }
        Some(Self {
            subject: WithDisks {
                memory,
                disks,
                discard_route: DiscardRoute::new(),
            },
            directory,
            writer: Some(writer),
        })
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The names of all files, sorted.
    pub fn files(&self) -> Vec<String> {
        let entries = fs::read_dir(self.directory.path()).unwrap();
        let mut names: Vec<_> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    pub fn disk(&self, id: &str) -> File {
        self.find(id).file().unwrap()
    }

    /// What the disk contained when it was held last.
    pub fn held_content(&self, id: &str) -> Vec<u8> {
        self.find(id).shared.content.lock().unwrap().clone()
    }

    pub fn holds(&self, id: &str) -> u64 {
        self.find(id).shared.holds.load(Ordering::Relaxed)
    }

    pub fn is_free(&self, id: &str) -> bool {
        *self.find(id).shared.gate.lock().unwrap() == 0
    }

    /// Lets nobody write the disk from now on.
    pub fn rest(&self, id: &str) {
        let shared = &self.find(id).shared;
        let gate = shared.gate.lock().unwrap();
        shared.rest.store(true, Ordering::Relaxed);
        drop(gate);
    }

    /// Cuts the disk off when it is held next.
    pub fn shrink_when_held(&self, id: &str) {
        self.find(id).shared.shrink.store(true, Ordering::Relaxed);
    }

    /// Gives a page of memory back to the host.
    pub fn discard(&self, guest_address: u64) {
        let route = &self.subject.discard_route;
        route.discard(self.subject.memory(), guest_address, 4096).unwrap();
    }

    fn find(&self, id: &str) -> &FakeDisk {
        self.subject
            .disks
            .iter()
            .find(|disk| disk.config.id == id)
            .unwrap()
    }
}

impl Drop for DiskScene {
    fn drop(&mut self) {
        self.find("data").shared.ended.store(true, Ordering::Relaxed);
        if let Some(writer) = self.writer.take() {
            writer.join().unwrap();
        }
    }
}

/// Writes pages all over the disk until the scene ends, but none while someone holds it.
fn write_disk(disk: &FakeDisk) {
    let file = disk.file().unwrap();
    let mut step = 0_u64;
    while !disk.shared.ended.load(Ordering::Relaxed) {
        let holders = disk.shared.gate.lock().unwrap();
        if *holders == 0 && !disk.shared.rest.load(Ordering::Relaxed) {
            let page = step.wrapping_mul(0x9e37_79b9_7f4a_7c15) % (DISK_BYTES / 4096 / 8);
            let byte = u8::try_from(step % 251).unwrap();
            file.write_all_at(&[byte; 4096], page * 8 * 4096).unwrap();
            step += 1;
        }
        drop(holders);
        thread::yield_now();
    }
}
