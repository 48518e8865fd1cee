//! Getting a vCPU out of the guest.
//!
//! A kick is two things in this order: the `immediate_exit` byte of the vCPU's run structure, which makes
//! the next KVM_RUN return at once, and a signal, which makes the one under way return. Whichever side of
//! the entry the vCPU's thread is on, one of the two catches it, so no kick is lost. The signal's handler
//! does nothing; the signal only has to arrive.

#![expect(
    unsafe_code,
    reason = "maps the run structure a second time, to write one byte of it from any thread"
)]

use std::os::fd::AsRawFd;
use std::ptr::NonNull;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, Ordering};

use kvm_bindings::kvm_run;
use kvm_ioctls::VcpuFd;
use libc::{c_int, c_void, siginfo_t};
use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler, unblock_signal};

use crate::error::{Error, Result};

/// Bytes of the mapping: the byte that matters lies in the first page of the run structure.
const MAPPED_BYTES: usize = 4096;
const _: () = assert!(std::mem::offset_of!(kvm_run, immediate_exit) < MAPPED_BYTES);

/// Returns the signal that kicks vCPU threads.
pub(crate) fn signal() -> c_int {
    SIGRTMIN()
}

/// Installs the signal's handler, once per process.
pub(crate) fn install_handler() -> Result<()> {
    static INSTALLED: OnceLock<std::result::Result<(), c_int>> = OnceLock::new();
    extern "C" fn nothing(_: c_int, _: *mut siginfo_t, _: *mut c_void) {}
    INSTALLED
        .get_or_init(|| register_signal_handler(signal(), nothing).map_err(|error| error.errno()))
        .map_err(|errno| Error::Io {
            operation: "sigaction",
            source: std::io::Error::from_raw_os_error(errno),
        })
}

/// Lets the signal reach the calling thread, whatever mask it inherited.
pub(crate) fn unblock_on_this_thread() {
    if let Err(error) = unblock_signal(signal()) {
        tracing::error!(?error, "the kick signal stays blocked on this thread");
    }
}

/// The `immediate_exit` byte of one vCPU, in a mapping of its own.
#[derive(Debug)]
pub(crate) struct ImmediateExit {
    mapping: NonNull<c_void>,
}

// SAFETY: the mapping belongs to this value alone, and the only access to it is atomic.
unsafe impl Send for ImmediateExit {}
// SAFETY: as for `Send`: the byte is only ever accessed as an atomic.
unsafe impl Sync for ImmediateExit {}

impl ImmediateExit {
    /// Maps the run structure of `vcpu` a second time.
    pub(crate) fn map(vcpu: &VcpuFd) -> Result<Self> {
        // SAFETY:
        // - The address is the kernel's choice, so no mapping is replaced.
        // - The file is a vCPU, whose run structure is at offset 0 and at least a page long.
        let address = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                MAPPED_BYTES,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                vcpu.as_raw_fd(),
                0,
            )
        };
        match NonNull::new(address) {
            Some(mapping) if address != libc::MAP_FAILED => Ok(Self { mapping }),
            _ => Err(Error::Io {
                operation: "mmap of a vcpu",
                source: std::io::Error::last_os_error(),
            }),
        }
    }

    /// Makes the vCPU leave the guest as soon as it enters, or lets it stay.
    pub(crate) fn set(&self, exit: bool) {
        self.byte().store(u8::from(exit), Ordering::SeqCst);
    }

    fn byte(&self) -> &AtomicU8 {
        let offset = std::mem::offset_of!(kvm_run, immediate_exit);
        // SAFETY: the offset is inside the mapping, asserted above.
        let byte = unsafe { self.mapping.cast::<u8>().add(offset) };
        // SAFETY:
        // - The mapping lives as long as `self`; a byte is always aligned.
        // - In this mapping the byte is accessed through this function only; the kernel reads it.
        unsafe { AtomicU8::from_ptr(byte.as_ptr()) }
    }
}

impl Drop for ImmediateExit {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `map`, with this length, and nothing refers to it any more.
        unsafe { libc::munmap(self.mapping.as_ptr(), MAPPED_BYTES) };
    }
}
