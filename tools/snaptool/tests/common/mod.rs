//! Snapshot files for the tests of the commands, and the commands themselves.
#![allow(dead_code, reason = "every test uses a part of it")]
#![allow(
    clippy::cast_possible_truncation,
    reason = "the numbers of these machines are small"
)]

pub mod elf;
pub mod kernel;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use assert_cmd::Command;
use ciborium::cbor;
use ciborium::value::Value;
use serde_json::Value as Json;
use snapfile::{
    ChunkNumber, ChunkSize, Codec, Encoding, MemoryMap, MemoryRegion, Parent, Section, SectionKind, Snapshot,
    Writer, WriterOptions,
};

pub const MIB: usize = 1 << 20;

/// The address of the second memory region, behind a hole.
pub const HIGH: u64 = 4 << 20;

/// Where the code of the test guest stands: `mov eax, 1; jmp $`.
pub const CODE: usize = 0x1000;

/// A machine that can be varied before it is written.
pub struct Machine {
    pub low: Vec<u8>,
    pub high: Vec<u8>,
    pub rip: u64,
    pub note: &'static str,
    pub chunk_bytes: u32,
    pub parent: Option<Parent>,
    /// CR3 of each vCPU.
    pub roots: [u64; 2],
    /// Levels of page tables, 4 or 5; 0 if paging is off.
    pub levels: u32,
    /// Sections beside those that every machine here has.
    pub more_sections: Vec<(SectionKind, &'static str, Value)>,
    /// The same for sections of version 2.
    pub version_2: Vec<(SectionKind, &'static str, Value)>,
}

impl Machine {
    /// Two regions with a hole between, most of it zero, some of it noise and some of it text.
    pub fn new() -> Self {
        let mut low = vec![0; 2 * MIB];
        low[CODE..CODE + 7].copy_from_slice(&[0xb8, 1, 0, 0, 0, 0xeb, 0xfe]);
        let mut state = 1u32;
        low[MIB..MIB + MIB / 4].fill_with(|| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        });
        low[MIB + MIB / 2..]
            .iter_mut()
            .enumerate()
            .for_each(|(place, byte)| *byte = (place / 50 % 90) as u8);
        let mut high = vec![0; MIB];
        high[MIB / 2..].fill(0xa5);
        Self {
            low,
            high,
            rip: CODE as u64,
            note: "test",
            chunk_bytes: 65536,
            parent: None,
            roots: [0; 2],
            levels: 0,
            more_sections: Vec::new(),
            version_2: Vec::new(),
        }
    }

    /// Writes the snapshot.
    pub fn write(&self, path: &Path) {
        let region = |guest_address, bytes: &Vec<u8>| MemoryRegion {
            guest_address,
            len_bytes: bytes.len() as u64,
        };
        let map = MemoryMap::new(vec![region(0, &self.low), region(HIGH, &self.high)]).unwrap();
        let options = WriterOptions {
            codec: Codec::Zstd { level: 1 },
            chunk_size: ChunkSize::new(self.chunk_bytes).unwrap(),
            parent: self.parent.clone(),
            ..WriterOptions::default()
        };
        let writer = Writer::new(File::create(path).unwrap(), &map, options).unwrap();
        let mut encoder = writer.encoder();
        for number in (0..writer.layout().chunk_count()).map(ChunkNumber) {
            let range = writer.layout().chunk(number).unwrap();
            let (region, start) = if range.region == 0 {
                (&self.low, 0)
            } else {
                (&self.high, HIGH)
            };
            let at = (range.guest_address - start) as usize;
            encoder
                .put_chunk(number, &region[at..at + range.len_bytes as usize])
                .unwrap();
        }
        let second = self.version_2.iter().cloned().map(|section| (2, section));
        let sections = self.sections().into_iter().map(|section| (1, section));
        for (version, (kind, name, value)) in sections.chain(second) {
            let mut payload = Vec::new();
            ciborium::into_writer(&value, &mut payload).unwrap();
            let (name, encoding) = (name.to_owned(), Encoding::Cbor);
            writer
                .put_section(&Section {
                    kind,
                    name,
                    version,
                    encoding,
                    payload,
                })
                .unwrap();
        }
        writer.finish().unwrap();
    }

    fn sections(&self) -> Vec<(SectionKind, &'static str, Value)> {
        let (cr0, efer) = if self.levels > 0 {
            (0x8000_0011u64, 0x500)
        } else {
            (0x11, 0)
        };
        let cr4 = if self.levels == 5 { 0x1020 } else { 0x20 };
        let vcpu = |number: usize, rip: u64| {
            let cr3 = self.roots[number];
            cbor!({
                "regs" => { "rip" => rip, "rsp" => 0x8000, "rax" => 0x1234_5678_9abc_def0u64, "rflags" => 2 },
                "sregs" => {
                    "cs" => { "selector" => 0x10, "base" => 0 },
                    "fs" => { "selector" => 0, "base" => 0xffff_8880_0000_0000u64 },
                    "cr0" => cr0, "cr3" => cr3, "cr4" => cr4, "efer" => efer,
                },
                "msrs" => { 0x174 => 0x10, 0xc000_0080u32 => 0x500 },
                "xsave" => Value::Bytes(vec![0; 1024]),
            })
            .unwrap()
        };
        let device = cbor!({ "divisor" => 1, "fifo" => Value::Bytes(b"\x1b[31mred".to_vec()) }).unwrap();
        let story = cbor!({ "vm_name" => self.note, "labels" => { "stage" => "\u{1b}[2J" } }).unwrap();
        let mut sections = vec![
            (SectionKind::VmState, "vcpu/0", vcpu(0, self.rip)),
            (SectionKind::VmState, "vcpu/1", vcpu(1, 0x2000)),
            (SectionKind::VmState, "device/never-heard-of", device),
            (SectionKind::Provenance, "", story),
        ];
        sections.extend(self.more_sections.clone());
        sections
    }

    /// What the extracted memory must be.
    pub fn raw_memory(&self) -> Vec<u8> {
        let mut raw = self.low.clone();
        raw.resize(usize::try_from(HIGH).unwrap(), 0);
        raw.extend_from_slice(&self.high);
        raw
    }
}

/// A directory with a snapshot of the unvaried machine in it.
pub fn sample() -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("vm.vmsnap");
    Machine::new().write(&file);
    (directory, file)
}

/// Writes an incremental snapshot of a changed machine beside its parent.
pub fn child(parent: &Path, path: &Path) -> Machine {
    let mut machine = Machine::new();
    machine.low[MIB + 7] ^= 1;
    let hint = parent.file_name().unwrap().to_str().unwrap().to_owned();
    machine.parent = Some(Parent {
        snapshot: Arc::new(Snapshot::open(parent).unwrap()),
        hint,
    });
    machine.write(path);
    machine
}

/// Lets a test that opens disk images run alone in its process.
///
/// A child that another thread has forked has all descriptors, and so the locks of images, until it executes its
/// program: what one test has just closed could still be in use.
pub fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The command with these arguments.
pub fn snaptool<I: AsRef<std::ffi::OsStr>>(arguments: impl IntoIterator<Item = I>) -> Command {
    let mut command = Command::cargo_bin("snaptool").unwrap();
    command.args(arguments);
    command
}

/// Runs the command, expects the exit code and returns standard output.
#[track_caller]
pub fn run<I: AsRef<std::ffi::OsStr>>(arguments: impl IntoIterator<Item = I>, code: i32) -> String {
    let assert = snaptool(arguments).assert().code(code);
    let output = assert.get_output();
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// Runs the command, expects the exit code and returns standard error.
#[track_caller]
pub fn complaint<I: AsRef<std::ffi::OsStr>>(arguments: impl IntoIterator<Item = I>, code: i32) -> String {
    let assert = snaptool(arguments).assert().code(code);
    String::from_utf8(assert.get_output().stderr.clone()).unwrap()
}

/// Runs the command, expects the exit code and parses standard output.
#[track_caller]
pub fn json<I: AsRef<std::ffi::OsStr>>(arguments: impl IntoIterator<Item = I>, code: i32) -> Json {
    serde_json::from_str(&run(arguments, code)).unwrap()
}

/// The path as text.
pub fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Flips one bit of the file.
pub fn flip(path: &Path, offset: u64) {
    let mut bytes = fs::read(path).unwrap();
    bytes[usize::try_from(offset).unwrap()] ^= 1;
    fs::write(path, bytes).unwrap();
}

/// Runs gdb on the core and returns what it says; `None` where gdb is absent.
pub fn gdb(core: &Path, commands: &[&str]) -> Option<String> {
    let commands = commands.iter().flat_map(|command| ["-ex", command]);
    let output = std::process::Command::new("gdb")
        .args(["-batch", "-nx", "-c", text(core)])
        .args(commands)
        .output();
    match output {
        Ok(output) => Some(String::from_utf8_lossy(&output.stdout).into_owned()),
        Err(_) => {
            eprintln!(
                "SKIPPED: {}: gdb is not installed",
                std::thread::current().name().unwrap_or("gdb")
            );
            None
        }
    }
}
