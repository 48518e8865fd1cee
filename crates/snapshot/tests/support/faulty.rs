//! Disks that fail where a test wants them to.

use std::any::Any;
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;

use snapshot::{DiskFault, DiskLayer, DiskSource, Fingerprint, FrozenImage, InternalEntry, Overlay};
use vmm::{DiskConfig, FrozenFor};

/// Where a disk fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// A write of the guest waits for room.
    Full,
    /// It consists of as many files as a disk may.
    Deep,
    /// No overlay can be made.
    Prepare,
    /// The overlay cannot take its place.
    Switch,
    /// The frozen image cannot be made durable.
    Settle,
    /// No internal snapshot can be created.
    Create,
}

/// A disk that does what it is asked but for one thing.
#[derive(Debug)]
pub struct Faulty {
    pub disk: Arc<dyn DiskSource>,
    pub fault: Fault,
}

#[derive(Debug)]
struct FaultyOverlay {
    overlay: Box<dyn Overlay>,
    fault: Fault,
}

#[derive(Debug)]
struct FaultyImage(Box<dyn FrozenImage>);

fn fail<T>() -> Result<T, DiskFault> {
    Err("as the test wants it".into())
}

impl DiskSource for Faulty {
    fn config(&self) -> &DiskConfig {
        self.disk.config()
    }

    fn virtual_size_bytes(&self) -> u64 {
        self.disk.virtual_size_bytes()
    }

    fn layers(&self) -> Vec<DiskLayer> {
        let mut layers = self.disk.layers();
        while self.fault == Fault::Deep && layers.len() < 64 {
            layers.push(layers[0].clone());
        }
        layers
    }

    fn waits_for_room(&self) -> bool {
        self.fault == Fault::Full
    }

    fn file(&self) -> io::Result<File> {
        self.disk.file()
    }

    fn hold(&self) -> Result<Box<dyn Any + Send>, DiskFault> {
        self.disk.hold()
    }

    fn prepare_overlay(&self, frozen: &Path, owner: &FrozenFor) -> Result<Box<dyn Overlay>, DiskFault> {
        if self.fault == Fault::Prepare {
            return fail();
        }
        Ok(Box::new(FaultyOverlay {
            overlay: self.disk.prepare_overlay(frozen, owner)?,
            fault: self.fault,
        }))
    }

    fn create_internal_snapshot(&self, name: &str) -> Result<InternalEntry, DiskFault> {
        if self.fault == Fault::Create {
            return fail();
        }
        self.disk.create_internal_snapshot(name)
    }

    fn internal_fingerprint(&self, id: &str) -> Result<Fingerprint, DiskFault> {
        self.disk.internal_fingerprint(id)
    }

    fn delete_internal_snapshot(&self, id: &str) -> Result<(), DiskFault> {
        self.disk.delete_internal_snapshot(id)
    }
}

impl Overlay for FaultyOverlay {
    fn frozen_path(&self) -> &Path {
        self.overlay.frozen_path()
    }

    fn switch(self: Box<Self>) -> Result<Box<dyn FrozenImage>, DiskFault> {
        if self.fault == Fault::Switch {
            return fail();
        }
        let image = self.overlay.switch()?;
        if self.fault == Fault::Settle {
            return Ok(Box::new(FaultyImage(image)));
        }
        Ok(image)
    }
}

impl FrozenImage for FaultyImage {
    fn layers(&self) -> Vec<DiskLayer> {
        self.0.layers()
    }

    fn settle(&self) -> Result<(), DiskFault> {
        fail()
    }
}
