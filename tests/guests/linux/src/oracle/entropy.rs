//! Fresh random bytes of the kernel and of the host.

use std::fs::File;
use std::io::Read;

use linux_guest::status::Entropy;

/// Bytes of the host that the kernel may have fetched ahead: twice what the driver and the core of the kernel keep,
/// a cache line each. A copy has those of its source still.
const AHEAD_BYTES: usize = 256;

const SHOWN_BYTES: usize = 16;

/// Reads both sources; one that is absent or silent gives nothing.
pub fn read() -> Entropy {
    Entropy {
        urandom: hex_of("/dev/urandom", 0),
        hwrng: hex_of("/dev/hwrng", 0),
    }
}

/// Reads both sources in a copy, behind what the kernel had of the host before it became one.
pub fn read_in_copy() -> Entropy {
    Entropy {
        urandom: hex_of("/dev/urandom", 0),
        hwrng: hex_of("/dev/hwrng", AHEAD_BYTES),
    }
}

/// Shows what a source gives behind the first `passed_over` bytes.
fn hex_of(source: &str, passed_over: usize) -> String {
    let mut bytes = vec![0; passed_over + SHOWN_BYTES];
    let read = File::open(source).and_then(|mut file| file.read_exact(&mut bytes));
    match read {
        Ok(()) => bytes[passed_over..]
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect(),
        Err(_absent) => String::new(),
    }
}
