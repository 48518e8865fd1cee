//! The engines: each opens an image with its whole backing chain, as its documentation says.

use std::path::Path;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use imago::file::File;
use imago::qcow2::Qcow2;
use imago::{FormatAccess, FormatDriverBuilder, PermissiveImplicitOpenGate};
use qcow2_rs::dev::{Qcow2Dev, Qcow2DevParams};
use qcow2_rs::helpers::Qcow2IoBuf;
use qcow2_rs::sync_io::Qcow2IoSync;
use qcow2_rs::utils::qcow2_setup_dev_sync;

/// Whatever went wrong.
pub type Fault = Box<dyn std::error::Error>;

/// What a guest may ask of a disk.
pub trait Engine {
    fn len_bytes(&self) -> u64;
    fn read(&mut self, offset: u64, len: usize) -> Result<Vec<u8>, Fault>;
    fn write(&mut self, bytes: &[u8], offset: u64) -> Result<(), Fault>;
    fn zero(&mut self, offset: u64, len: u64) -> Result<(), Fault>;
    /// Everything written before is on the medium afterwards.
    fn flush(&mut self) -> Result<(), Fault>;
}

/// The crate `imago`, without asynchronous functions.
pub struct Imago(FormatAccess<File>);

impl Imago {
    pub fn open(path: &Path) -> Result<Self, Fault> {
        let image = Qcow2::<File>::builder_path(path)
            .write(true)
            .open(PermissiveImplicitOpenGate::default())?;
        Ok(Self(FormatAccess::new(image)))
    }
}

impl Engine for Imago {
    fn len_bytes(&self) -> u64 {
        self.0.size()
    }

    fn read(&mut self, offset: u64, len: usize) -> Result<Vec<u8>, Fault> {
        let mut bytes = vec![0; len];
        self.0.read(&mut bytes[..], offset)?;
        Ok(bytes)
    }

    fn write(&mut self, bytes: &[u8], offset: u64) -> Result<(), Fault> {
        Ok(self.0.write(bytes, offset)?)
    }

    fn zero(&mut self, offset: u64, len: u64) -> Result<(), Fault> {
        Ok(self.0.write_zeroes(offset, len)?)
    }

    fn flush(&mut self) -> Result<(), Fault> {
        self.0.flush()?;
        Ok(self.0.sync()?)
    }
}

/// The crate `qcow2-rs` on plain system calls: its futures are ready when they are first asked.
pub struct Qcow2Rs(Qcow2Dev<Qcow2IoSync>);

impl Qcow2Rs {
    pub fn open(path: &Path) -> Result<Self, Fault> {
        let params = Qcow2DevParams::new(9, None, None, false, false);
        let device = qcow2_setup_dev_sync(path, &params).map_err(|error| format!("{error:?}"))?;
        wait(device.qcow2_prep_io()).map_err(|error| format!("{error:?}"))?;
        Ok(Self(device))
    }
}

impl Engine for Qcow2Rs {
    fn len_bytes(&self) -> u64 {
        self.0.info.virtual_size()
    }

    fn read(&mut self, offset: u64, len: usize) -> Result<Vec<u8>, Fault> {
        let mut buffer = Qcow2IoBuf::<u8>::new(len);
        wait(self.0.read_at(&mut buffer, offset)).map_err(|error| format!("{error:?}"))?;
        Ok(buffer.to_vec())
    }

    fn write(&mut self, bytes: &[u8], offset: u64) -> Result<(), Fault> {
        let mut buffer = Qcow2IoBuf::<u8>::new(bytes.len());
        buffer.copy_from_slice(bytes);
        Ok(wait(self.0.write_at(&buffer, offset)).map_err(|error| format!("{error:?}"))?)
    }

    fn zero(&mut self, offset: u64, len: u64) -> Result<(), Fault> {
        self.write(&vec![0; usize::try_from(len)?], offset)
    }

    fn flush(&mut self) -> Result<(), Fault> {
        let all = usize::try_from(self.len_bytes())?;
        wait(self.0.flush_meta()).map_err(|error| format!("{error:?}"))?;
        Ok(wait(self.0.fsync_range(0, all)).map_err(|error| format!("{error:?}"))?)
    }
}

/// Polls a future that never waits for another thread.
fn wait<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    let mut context = Context::from_waker(Waker::noop());
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut context) {
            return output;
        }
    }
}
