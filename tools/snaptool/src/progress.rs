//! Progress bars: on standard error, only where that is a terminal, gone when the work is done.

use std::io::IsTerminal;
use std::ops::ControlFlow;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// A bar of bytes that is removed when dropped.
pub struct Progress(ProgressBar);

impl Progress {
    /// Begins a bar that says what is being done.
    pub fn new(verb: &'static str) -> Self {
        let target = if std::io::stderr().is_terminal() {
            ProgressDrawTarget::stderr()
        } else {
            ProgressDrawTarget::hidden()
        };
        let bar = ProgressBar::with_draw_target(None, target);
        let template = "{prefix} {bar:30} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {eta}";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("#>-"));
        }
        bar.set_prefix(verb);
        Self(bar)
    }

    /// Shows how far the work is.
    pub fn update(&self, done: u64, total: u64) {
        self.0.set_length(total);
        self.0.set_position(done);
    }

    /// The same for a library's callback; goes on always.
    pub fn go_on(&self, done: u64, total: u64) -> ControlFlow<()> {
        self.update(done, total);
        ControlFlow::Continue(())
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
