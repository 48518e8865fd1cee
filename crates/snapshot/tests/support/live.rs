//! Plain memory with real disks, written to by one thread in an order that its counter alone decides.
//!
//! Write `n`, from 1 on, puts its number all over one block of one disk. How many writes were complete at the capture
//! point is in the state of a snapshot, and says what every block of every disk must hold.
#![allow(dead_code, reason = "each test file uses a part of it")]

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use snapfile::{SectionKind, Snapshot};
use snapshot::{DiskSource, MachineRecord, PlainMemory, Subject, WriterSteps};
use tempfile::TempDir;
use vm_memory::{GuestMemoryMmap, VolatileSlice};
use vmm::{DevicesConfig, Disk, DiskConfig, DiskFormat, StateError, StatePart};

/// Length of every disk.
pub const DISK_BYTES: u64 = 4 << 20;
const BLOCK_BYTES: usize = 4096;
const BLOCKS: u64 = DISK_BYTES / BLOCK_BYTES as u64;
/// Writes between two flushes.
const FLUSH_EVERY: u64 = 64;
/// The state part that holds the number of complete writes.
const WRITES: &str = "writes";

/// Where write `n` goes: which of so many disks, and which block of it.
pub fn place(n: u64, disks: usize) -> (usize, u64) {
    let disk = n % disks as u64;
    let block = (n / disks as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) % BLOCKS;
    (usize::try_from(disk).unwrap(), block)
}

/// What a disk holds after so many writes, as the number in each block; 0 stands for zeros.
pub fn expected(disk: usize, disks: usize, written: u64) -> Vec<u64> {
    let mut blocks = vec![0; usize::try_from(BLOCKS).unwrap()];
    for n in 1..=written {
        let (to, block) = place(n, disks);
        if to == disk {
            blocks[usize::try_from(block).unwrap()] = n;
        }
    }
    blocks
}

/// The number in each block of a disk's content; every block must be of one piece.
#[track_caller]
pub fn numbers(content: &[u8]) -> Vec<u64> {
    let block = |block: &[u8]| {
        let (words, _) = block.as_chunks::<8>();
        assert!(words.iter().all(|word| word == &words[0]), "a block is torn");
        u64::from_le_bytes(words[0])
    };
    content.chunks(BLOCK_BYTES).map(block).collect()
}

/// All that a disk holds now.
pub fn read_all(disk: &Disk) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(disk.len_bytes()).unwrap()];
    for (index, chunk) in bytes.chunks_mut(1 << 20).enumerate() {
        let offset = (index as u64) << 20;
        let slice = VolatileSlice::from(chunk);
        disk.backend().read_at(&[slice], offset).unwrap();
    }
    bytes
}

/// Creates an empty image of the format that the name says.
pub fn make_disk(path: &Path) {
    let file = File::options().read(true).write(true).create_new(true).open(path);
    let file = file.unwrap();
    if path.extension().unwrap() == "raw" {
        return file.set_len(DISK_BYTES).unwrap();
    }
    let storage = qcow2::FileStorage::from_file(file, qcow2::Access::ReadWrite);
    qcow2::create(&storage, &qcow2::CreateOptions::new(DISK_BYTES)).unwrap();
}

/// The configuration of a disk whose file's name says id and format.
pub fn config_of(path: &Path, readonly: bool) -> DiskConfig {
    let raw = path.extension().unwrap() == "raw";
    DiskConfig {
        format: if raw { DiskFormat::Raw } else { DiskFormat::Qcow2 },
        readonly,
        ..DiskConfig::new(path.file_stem().unwrap().to_str().unwrap(), path)
    }
}

/// The thread that writes, and what keeps it in its place.
#[derive(Debug)]
struct Writer {
    disks: Vec<Disk>,
    gate: Mutex<Gate>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Gate {
    paused: bool,
    ended: bool,
    written: u64,
}

/// Memory and disks that belong together.
#[derive(Debug)]
pub struct LiveMachine {
    memory: PlainMemory,
    writer: Arc<Writer>,
    /// The disks as a save sees them; a test may put others here.
    pub sources: Vec<Arc<dyn DiskSource>>,
    configs: Vec<DiskConfig>,
    thread: Option<JoinHandle<()>>,
}

/// State of memory and disks at one instant.
#[derive(Debug)]
pub struct LiveState {
    memory: WriterSteps,
    written: u64,
}

impl LiveMachine {
    /// Sets memory and disks to work; `written` writes were made to the disks before, and `told` hears of flushes.
    pub fn start(disks: &[Disk], written: u64, told: impl Fn(u64) + Send + 'static) -> Self {
        let writable: Vec<_> = disks
            .iter()
            .filter(|disk| !disk.is_read_only())
            .cloned()
            .collect();
        let writer = Arc::new(Writer {
            disks: writable,
            gate: Mutex::new(Gate {
                written,
                ..Gate::default()
            }),
            changed: Condvar::new(),
        });
        let working = Arc::clone(&writer);
        let memory = PlainMemory::new(4 << 20, 1).unwrap();
        memory.resume().unwrap();
        let source = |disk: &Disk| Arc::new(disk.clone()) as Arc<dyn DiskSource>;
        Self {
            memory,
            sources: disks.iter().map(source).collect(),
            configs: disks.iter().map(|disk| disk.config().clone()).collect(),
            thread: Some(thread::spawn(move || working.work(&told))),
            writer,
        }
    }

    pub fn written(&self) -> u64 {
        self.writer.gate.lock().unwrap().written
    }

    /// Waits until there are so many writes more.
    pub fn wait_for_writes(&self, more: u64) {
        let gate = self.writer.gate.lock().unwrap();
        let target = gate.written + more;
        drop(self.writer.changed.wait_while(gate, |gate| gate.written < target));
    }

    /// Insists that every disk holds what was written to it so far.
    #[track_caller]
    pub fn assert_intact(&self) {
        self.pause().unwrap();
        let written = self.written();
        for (number, disk) in self.writer.disks.iter().enumerate() {
            assert_holds(disk, number, self.writer.disks.len(), written);
        }
        self.resume().unwrap();
    }
}

/// Insists that a disk, one of so many, holds what was there after so many writes.
#[track_caller]
pub fn assert_holds(disk: &Disk, number: usize, disks: usize, written: u64) {
    let found = numbers(&read_all(disk));
    assert!(
        found == expected(number, disks, written),
        "disk {} does not hold what was written to it",
        disk.id()
    );
}

impl Writer {
    fn work(&self, told: &dyn Fn(u64)) {
        loop {
            let gate = self.gate.lock().unwrap();
            let waiting = |gate: &mut Gate| gate.paused && !gate.ended;
            let mut gate = self.changed.wait_while(gate, waiting).unwrap();
            if gate.ended {
                return;
            }
            let n = gate.written + 1;
            let (disk, block) = place(n, self.disks.len());
            let mut bytes = n.to_le_bytes().repeat(BLOCK_BYTES / 8);
            let backend = self.disks[disk].backend();
            let slice = VolatileSlice::from(bytes.as_mut_slice());
            backend.write_at(&[slice], block * BLOCK_BYTES as u64).unwrap();
            gate.written = n;
            if n.is_multiple_of(FLUSH_EVERY) {
                self.disks.iter().for_each(|disk| disk.backend().flush().unwrap());
                told(n);
            }
            self.changed.notify_all();
            drop(gate);
            thread::yield_now();
        }
    }

    fn set(&self, change: impl FnOnce(&mut Gate)) {
        change(&mut self.gate.lock().unwrap());
        self.changed.notify_all();
    }
}

impl Drop for LiveMachine {
    fn drop(&mut self) {
        self.writer.set(|gate| gate.ended = true);
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

impl Subject for LiveMachine {
    type State = LiveState;

    fn memory(&self) -> &GuestMemoryMmap {
        self.memory.memory()
    }

    fn is_running(&self) -> bool {
        self.memory.is_running()
    }

    fn pause(&self) -> Result<(), vmm::Error> {
        self.writer.set(|gate| gate.paused = true);
        self.memory.pause()
    }

    fn resume(&self) -> Result<(), vmm::Error> {
        self.memory.resume()?;
        self.writer.set(|gate| gate.paused = false);
        Ok(())
    }

    fn save_state(&self) -> Result<LiveState, vmm::Error> {
        Ok(LiveState {
            memory: self.memory.save_state()?,
            written: self.written(),
        })
    }

    fn disks(&self) -> Vec<Arc<dyn DiskSource>> {
        self.sources.clone()
    }

    fn record(&self) -> MachineRecord {
        MachineRecord {
            devices: DevicesConfig {
                disks: self.configs.clone(),
                ..DevicesConfig::none()
            },
            ..MachineRecord::without_devices()
        }
    }

    fn encode(state: &LiveState) -> Result<Vec<StatePart>, StateError> {
        let mut parts = PlainMemory::encode(&state.memory)?;
        let mut cbor = Vec::new();
        ciborium::into_writer(&state.written, &mut cbor).unwrap();
        parts.push(StatePart {
            name: WRITES.to_owned(),
            version: 1,
            cbor,
        });
        Ok(parts)
    }
}

/// How many writes were complete at the capture point of a snapshot.
pub fn written_at(snapshot: &Path) -> u64 {
    let snapshot = Snapshot::open(snapshot).unwrap();
    let section = snapshot.section(SectionKind::VmState, WRITES).unwrap();
    let payload = snapshot.read_section(section).unwrap();
    ciborium::from_reader(payload.as_slice()).unwrap()
}

/// Insists that a snapshot is whole: memory, and each disk as brought back and as `qemu-img` reads its images.
#[track_caller]
pub fn assert_restorable(snapshot: &Path) -> Vec<Disk> {
    let checked = PlainMemory::check(snapshot).unwrap();
    assert_eq!(checked.mismatches, Vec::<String>::new());
    let written = written_at(snapshot);
    let options = snapshot::RestoreOptions {
        check_disks: true,
        ..snapshot::RestoreOptions::default()
    };
    let disks = snapshot::restore_disks(snapshot, &options).unwrap();
    let writable: Vec<_> = disks.iter().filter(|disk| !disk.is_read_only()).collect();
    for (number, disk) in writable.iter().enumerate() {
        assert_holds(disk, number, writable.len(), written);
    }
    disks
}

/// A directory with images, and the machine that uses them.
pub struct LiveScene {
    pub machine: LiveMachine,
    pub directory: TempDir,
    _alone: Alone,
}

/// Keeps the tests of one program from each other. Between its fork and its exec, the child of one test has the open
/// files of all others, and so their locks, for a moment longer than they have.
pub type Alone = MutexGuard<'static, ()>;

/// Waits until no other test is at work.
pub fn alone() -> Alone {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

impl LiveScene {
    /// Sets the scene with writable disks of these names, `a.qcow2` or `b.raw`, and a read-only one, unless memory
    /// cannot be protected here.
    pub fn set(test: &str, names: &[&str]) -> Option<Self> {
        if !Path::new("/dev/userfaultfd").exists() {
            eprintln!("SKIPPED: {test}: there is no /dev/userfaultfd");
            return None;
        }
        let alone = alone();
        let directory = TempDir::new().unwrap();
        let open = |name: &str, readonly| {
            let path = directory.path().join(name);
            make_disk(&path);
            Disk::open(&config_of(&path, readonly)).unwrap()
        };
        let mut disks: Vec<_> = names.iter().map(|name| open(name, false)).collect();
        disks.push(open("cd.qcow2", true));
        let machine = LiveMachine::start(&disks, 0, |_| {});
        machine.wait_for_writes(500);
        Some(Self {
            machine,
            directory,
            _alone: alone,
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
}
