//! What a guest finds that ends by jumping to the firmware: a few instructions that reset the machine.
//!
//! It is how Linux restarts a hardware-reduced machine without EFI: it counts on EFI there, leaves out the
//! reset register and the keyboard controller, and at last enters the firmware in 16-bit mode.

use vm_memory::{Bytes, GuestMemoryMmap};

use super::memory_error;
use crate::device::power;
use crate::error::Result;
use crate::layout::RESET_VECTOR;

const PORT: [u8; 2] = power::RESET_PORT.to_le_bytes();

/// In 16-bit mode: `mov dx, port; mov al, value; out dx, al; hlt; jmp -3`.
const CODE: [u8; 9] = [
    0xba,
    PORT[0],
    PORT[1],
    0xb0,
    power::RESET_VALUE,
    0xee,
    0xf4,
    0xeb,
    0xfd,
];

/// Writes the instructions where a processor starts in the first megabyte.
pub(super) fn write(memory: &GuestMemoryMmap) -> Result<()> {
    memory.write_slice(&CODE, RESET_VECTOR).map_err(memory_error)
}
