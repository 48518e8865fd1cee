//! Discards of the machine, led through the capture for as long as there is one.
//!
//! A balloon gives memory back to the host while it is captured. The capture must see that first, or it finds content
//! gone that belongs to the snapshot; whatever else discards memory meanwhile makes it fail.

use std::io;
use std::sync::Arc;

use memsnap::{CaptureControl, Discards};
use vm_memory::GuestMemoryMmap;
use vmm::{Discard, DiscardRoute};

/// The way through the capture; dropping it gives discards back the way that they had.
pub(crate) struct Diversion {
    route: DiscardRoute,
    former: Option<Arc<dyn Discard>>,
}

struct ThroughCapture(Discards);

impl Discard for ThroughCapture {
    fn discard(&self, memory: &GuestMemoryMmap, gpa: u64, len: u64) -> io::Result<()> {
        self.0.discard(memory, gpa, len)
    }
}

impl Diversion {
    /// Leads discards through the capture of `control`, which has not begun.
    pub(crate) fn set_up(route: DiscardRoute, control: &CaptureControl) -> Self {
        let former = route.install(Arc::new(ThroughCapture(control.discards())));
        Self {
            route,
            former: Some(former),
        }
    }
}

impl Drop for Diversion {
    fn drop(&mut self) {
        if let Some(former) = self.former.take() {
            self.route.install(former);
        }
    }
}
