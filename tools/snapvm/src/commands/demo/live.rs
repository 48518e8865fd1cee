//! The live view: how fast the guest writes at this moment, and how far a snapshot is.

use std::thread;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use snapshot::{SaveControl, SaveReport};

use super::guest::Guest;
use crate::progress::SnapshotBar;

/// How often the view changes.
const TICK: Duration = Duration::from_millis(100);

/// Draws on standard error, if that is a terminal.
#[derive(Debug)]
pub struct Live {
    visible: bool,
}

/// The guest's rate between two looks at it.
struct Rate {
    at: Instant,
    steps: u64,
}

impl Rate {
    fn since(guest: &impl Guest) -> Self {
        Self {
            at: Instant::now(),
            steps: guest.steps(),
        }
    }

    /// Pages per second since the look.
    fn until_now(&self, guest: &impl Guest) -> u64 {
        let steps = u128::from(guest.steps().saturating_sub(self.steps));
        let rate = (steps * 1_000_000)
            .checked_div(self.at.elapsed().as_micros())
            .unwrap_or(0);
        u64::try_from(rate).unwrap_or(u64::MAX)
    }
}

impl Live {
    /// Makes a view.
    #[must_use]
    pub fn new(visible: bool) -> Self {
        Self { visible }
    }

    /// Watches the guest for a while; returns its pages per second.
    pub fn watch(&self, guest: &impl Guest, when: &str, time: Duration) -> u64 {
        let target = if self.visible {
            ProgressDrawTarget::stderr()
        } else {
            ProgressDrawTarget::hidden()
        };
        let bar = ProgressBar::with_draw_target(None, target).with_style(ProgressStyle::default_spinner());
        let whole = Rate::since(guest);
        while whole.at.elapsed() < time {
            let now = Rate::since(guest);
            thread::sleep(TICK.min(time));
            bar.set_message(format!(
                "{when}: the guest writes {} pages/s",
                now.until_now(guest)
            ));
            bar.tick();
        }
        bar.finish_and_clear();
        whole.until_now(guest)
    }

    /// Shows a snapshot while `save` takes it; returns the guest's pages per second meanwhile.
    pub fn follow<G: Guest>(
        &self,
        guest: &G,
        save: impl FnOnce(&SaveControl) -> Result<SaveReport, snapshot::Error> + Send,
    ) -> (u64, Result<SaveReport, snapshot::Error>) {
        let control = SaveControl::new();
        let bar = SnapshotBar::new(self.visible);
        let whole = Rate::since(guest);
        let (rate, result) = thread::scope(|scope| {
            let saving = scope.spawn(|| {
                let result = save(&control);
                (whole.until_now(guest), result)
            });
            let mut last = Rate::since(guest);
            while !saving.is_finished() {
                thread::sleep(Duration::from_millis(10));
                if last.at.elapsed() >= TICK {
                    bar.show_beside(
                        &control.progress(),
                        &format!("guest {} pages/s", last.until_now(guest)),
                    );
                    last = Rate::since(guest);
                }
            }
            saving
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        });
        bar.finish();
        (rate, result)
    }
}
