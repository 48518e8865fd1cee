//! Snapshots and their cost as facts for people.

use snapshot::SaveReport;

use crate::api::{GuestStatus, SnapshotState, SnapshotStatus};
use crate::output::{Facts, human_bytes, human_us};
use crate::progress::phase_text;

/// Adds how a snapshot stands, and what it cost once it is complete.
pub fn add_status(facts: &mut Facts, snapshot: &SnapshotStatus) {
    facts.add(
        "snapshot",
        format!("{} ({})", snapshot.path.display(), snapshot.state),
    );
    if snapshot.state == SnapshotState::Running {
        let progress = &snapshot.progress;
        facts.add("phase", phase_text(progress.phase));
        facts.add(
            "progress",
            format!("{} of {} chunks", progress.chunks_done, progress.chunks_total),
        );
        if progress.disk_bytes_total > 0 {
            facts.add(
                "disks so far",
                format!(
                    "{} of {}",
                    human_bytes(progress.disk_bytes),
                    human_bytes(progress.disk_bytes_total)
                ),
            );
        }
        facts.add("file so far", human_bytes(progress.file_bytes));
    }
    if let Some(error) = &snapshot.error {
        facts.add("because", error);
    }
    if let Some(report) = &snapshot.report {
        add_report(facts, report);
    }
}

/// Adds what a complete snapshot is and what it cost.
pub fn add_report(facts: &mut Facts, report: &SaveReport) {
    let statistics = &report.statistics;
    let capture = &statistics.capture;
    facts.add("root digest", &report.root_digest);
    facts.add("command to T", human_us(statistics.command_to_capture_point_us));
    if statistics.was_paused {
        facts.add("downtime", "none: the guest was paused already");
    } else {
        facts.add(
            "downtime",
            format!(
                "{} (park {}, state {}, freeze {}, resume {})",
                human_us(statistics.downtime_us),
                human_us(statistics.park_us),
                human_us(statistics.state_us),
                human_us(statistics.freeze_us),
                human_us(statistics.resume_us),
            ),
        );
    }
    if statistics.drain_us > 0 {
        facts.add(
            "devices drained",
            format!("{} before that", human_us(statistics.drain_us)),
        );
    }
    if statistics.disks.count > 0 {
        let disks = &statistics.disks;
        facts.add(
            "disks",
            format!(
                "{} of {}, held {}, copied in {}",
                disks.count,
                human_bytes(disks.bytes),
                human_us(disks.hold_us),
                human_us(disks.copy_us),
            ),
        );
    }
    facts.add("total", human_us(report.total_us));
    facts.add("memory", human_bytes(capture.memory_bytes));
    facts.add(
        "file",
        format!(
            "{} ({})",
            human_bytes(report.file_bytes),
            ratio(capture.memory_bytes, report)
        ),
    );
    if capture.faults_draining > 0 {
        let stall = &capture.stall_draining;
        facts.add(
            "copied on write",
            format!(
                "{} in {} faults",
                human_bytes(capture.copied_bytes),
                capture.faults_draining
            ),
        );
        facts.add(
            "guest waited",
            format!(
                "p50 {}, p99 {}, max {} per fault",
                human_us(stall.p50_us),
                human_us(stall.p99_us),
                human_us(stall.max_us)
            ),
        );
        facts.add("buffers at most", human_bytes(capture.buffer_high_water_bytes));
    }
}

/// Adds what the built-in guest has done.
pub fn add_guest(facts: &mut Facts, guest: &GuestStatus) {
    facts.add("guest steps", guest.steps);
    facts.add("longest gap", human_us(guest.longest_gap_us));
    if guest.bad_stamps > 0 {
        facts.add("BAD pages", guest.bad_stamps);
    }
}

fn ratio(memory_bytes: u64, report: &SaveReport) -> String {
    let tenths = (memory_bytes * 10).checked_div(report.file_bytes).unwrap_or(0);
    format!("{}.{}:1", tenths / 10, tenths % 10)
}
