//! Other qcow2 engines behind one small command, as second readers and writers for tests.
//!
//! `peers imago|qcow2-rs IMAGE` opens the image for writing and obeys the lines of standard input:
//!
//! | line | what it does |
//! |---|---|
//! | `write OFFSET LEN SEED` | writes the pattern of that seed |
//! | `zero OFFSET LEN` | makes the range read as zeros |
//! | `flush` | makes everything durable, as a guest's flush does |
//! | `dump FILE` | writes the content of the whole disk to a file |
//! | `die` | ends the process without another word to the engine, as SIGKILL would |
//!
//! At the end of the input the image is flushed and closed. Exit code 1 is an error that the engine reported; what
//! else an engine may do to a process (panic, abort, overflow the stack) is seen in the exit status, which is why
//! each engine runs in a process of its own.
#![forbid(unsafe_code)]

mod engines;

use std::io::{self, BufRead, Write};
use std::path::Path;
use std::process::ExitCode;

use engines::{Engine, Fault, Imago, Qcow2Rs};

/// Bytes of a dump that are read at a time.
const STEP_BYTES: usize = 1 << 20;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [engine, image] = arguments.as_slice() else {
        eprintln!("usage: peers imago|qcow2-rs IMAGE < SCRIPT");
        return ExitCode::from(2);
    };
    let image = Path::new(image);
    let done = match engine.as_str() {
        "imago" => Imago::open(image).and_then(|mut engine| obey(&mut engine)),
        "qcow2-rs" => Qcow2Rs::open(image).and_then(|mut engine| obey(&mut engine)),
        other => Err(format!("{other}: not an engine").into()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("peers: {engine}: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Does what the lines of standard input say.
fn obey(engine: &mut impl Engine) -> Result<(), Fault> {
    for line in io::stdin().lock().lines() {
        let line = line?;
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            ["write", offset, len, seed] => {
                let offset: u64 = offset.parse()?;
                let bytes = pattern(seed.parse()?, offset, len.parse()?);
                engine.write(&bytes, offset)?;
            }
            ["zero", offset, len] => engine.zero(offset.parse()?, len.parse()?)?,
            ["flush"] => engine.flush()?,
            ["dump", file] => dump(engine, Path::new(file))?,
            ["die"] => std::process::exit(0),
            _ => return Err(format!("{line:?}: not understood").into()),
        }
    }
    engine.flush()
}

/// Writes the content of the disk to a file.
fn dump(engine: &mut impl Engine, path: &Path) -> Result<(), Fault> {
    let mut file = std::fs::File::create(path)?;
    let len_bytes = engine.len_bytes();
    let mut offset = 0;
    while offset < len_bytes {
        let step = usize::try_from(len_bytes - offset).map_or(STEP_BYTES, |left| left.min(STEP_BYTES));
        file.write_all(&engine.read(offset, step)?)?;
        offset += step as u64;
    }
    Ok(())
}

/// The bytes that belong to a seed at an offset: the tests compute the same ones.
fn pattern(seed: u64, offset: u64, len: usize) -> Vec<u8> {
    let byte = |at: u64| {
        let word = (at / 8)
            .wrapping_add(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15))
            .wrapping_mul(0xbf58_476d_1ce4_e5b9);
        (word ^ (word >> 31)).to_le_bytes()[(at % 8) as usize]
    };
    (offset..).take(len).map(byte).collect()
}
