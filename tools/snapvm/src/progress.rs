//! Progress bars, on a terminal only.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use snapshot::{Phase, RestoreProgress, SaveProgress};

const TEMPLATE: &str =
    "{msg:>11} [{bar:32}] {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {prefix}";

/// Shows how far a snapshot is, on standard error.
#[derive(Debug)]
pub struct SnapshotBar(ProgressBar);

impl SnapshotBar {
    /// Makes a bar; nothing is drawn unless `visible` and standard error is a terminal.
    #[must_use]
    pub fn new(visible: bool) -> Self {
        let target = if visible {
            ProgressDrawTarget::stderr()
        } else {
            ProgressDrawTarget::hidden()
        };
        let style = ProgressStyle::with_template(TEMPLATE).unwrap_or_else(|_| ProgressStyle::default_bar());
        let bar = ProgressBar::with_draw_target(Some(0), target).with_style(style.progress_chars("=> "));
        bar.enable_steady_tick(Duration::from_millis(100));
        Self(bar)
    }

    /// Shows the progress of this moment.
    pub fn show(&self, progress: &SaveProgress) {
        self.show_beside(progress, "");
    }

    /// Shows the progress of this moment, and another fact beside it.
    pub fn show_beside(&self, progress: &SaveProgress, fact: &str) {
        self.0.set_message(phase_text(progress.phase));
        self.0.set_length(progress.memory_bytes);
        self.0.set_position(progress.plain_bytes);
        self.0.set_prefix(format!(
            "file {} {fact}",
            crate::output::human_bytes(progress.file_bytes)
        ));
    }

    /// Removes the bar.
    pub fn finish(&self) {
        self.0.finish_and_clear();
    }
}

/// Shows how much of a restored machine's memory is in place, on standard error.
#[derive(Debug)]
pub struct RestoreBar(ProgressBar);

impl RestoreBar {
    /// Makes a bar; nothing is drawn unless standard error is a terminal.
    #[must_use]
    pub fn new() -> Self {
        let style = ProgressStyle::with_template("  restoring [{bar:32}] {percent} %")
            .unwrap_or_else(|_| ProgressStyle::default_bar());
        let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr());
        Self(bar.with_style(style.progress_chars("=> ")))
    }

    /// Shows the progress of this moment; called by several threads.
    pub fn show(&self, progress: RestoreProgress) {
        self.0.set_length(progress.chunks_total);
        self.0.set_position(progress.chunks_done);
    }

    /// Removes the bar.
    pub fn finish(&self) {
        self.0.finish_and_clear();
    }
}

/// Shows how far the flattening of a disk is, on standard error.
#[derive(Debug)]
pub struct FlattenBar(ProgressBar);

impl FlattenBar {
    /// Makes a bar; nothing is drawn unless `visible` and standard error is a terminal.
    #[must_use]
    pub fn new(visible: bool, disk: &str) -> Self {
        let target = if visible {
            ProgressDrawTarget::stderr()
        } else {
            ProgressDrawTarget::hidden()
        };
        let style = ProgressStyle::with_template(TEMPLATE).unwrap_or_else(|_| ProgressStyle::default_bar());
        let bar = ProgressBar::with_draw_target(Some(0), target).with_style(style.progress_chars("=> "));
        bar.set_message("flattening");
        bar.set_prefix(format!("disk {disk}"));
        bar.enable_steady_tick(Duration::from_millis(100));
        Self(bar)
    }

    /// Shows the progress of this moment.
    pub fn show(&self, bytes_done: u64, bytes_total: u64) {
        self.0.set_length(bytes_total);
        self.0.set_position(bytes_done);
    }

    /// Removes the bar.
    pub fn finish(&self) {
        self.0.finish_and_clear();
    }
}

/// What a phase is called on the screen.
#[must_use]
pub fn phase_text(phase: Phase) -> &'static str {
    match phase {
        Phase::Waiting => "waiting",
        Phase::Arming => "arming",
        Phase::Held => "held",
        Phase::Draining => "draining",
        Phase::Committing => "committing",
        Phase::Finished => "finished",
    }
}
