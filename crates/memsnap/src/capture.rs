//! stub
use snapfile::ChunkLayout;
use vm_memory::GuestMemoryMmap;

use crate::control::CaptureControl;
use crate::error::Result;
use crate::options::CaptureOptions;
use crate::report::CaptureReport;
use crate::sink::ChunkSink;

/// A capture under way.
#[derive(Debug)]
pub struct Capture {}

impl Capture {
    /// Write-protects memory while the guest runs.
    pub fn arm(memory: &GuestMemoryMmap<()>, layout: ChunkLayout, options: CaptureOptions) -> Result<Self> {
        let _ = (memory, layout, options);
        unimplemented!()
    }
    /// Fixes the point in time; every writer is paused.
    pub fn freeze(&mut self) -> Result<()> {
        unimplemented!()
    }
    /// Hands every chunk to the sink as it was at the point in time.
    pub fn drain(self, sink: &dyn ChunkSink) -> Result<CaptureReport> {
        let _ = sink;
        unimplemented!()
    }
    /// Progress and cancellation.
    pub fn control(&self) -> CaptureControl {
        unimplemented!()
    }
}

/// Captures memory whose writers are paused all the while.
pub fn stop_and_copy(
    memory: &GuestMemoryMmap<()>,
    layout: ChunkLayout,
    options: CaptureOptions,
    sink: &dyn ChunkSink,
) -> Result<CaptureReport> {
    let _ = (memory, layout, options, sink);
    unimplemented!()
}
