//! A large buffer whose pages several threads write, and one checks.
//!
//! Beside the buffer stands a version for each page: odd while the page's one writer writes, raised to even after. The
//! checker compares every page that it finds at rest, and looks at the version again afterwards. A memory that mixes
//! two instants shows a page whose content is of another version than the table says.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering, fence};
use std::thread;
use std::time::Duration;

use anyhow::Result;
use linux_guest::content::{Content, mix};

use super::Start;
use super::health::Health;
use crate::options::Options;

const PAGE_WORDS: usize = 512;

/// Writers and checker wait this many milliseconds between bursts.
const BREATH_MS: u64 = 50;

/// Pages checked between two pauses, so that the checker leaves a slow machine some time.
const CHECKED_AT_ONCE: usize = 128;

struct Buffer {
    seed: u64,
    words: Vec<AtomicU64>,
    versions: Vec<AtomicU64>,
}

/// Starts a writer for each processor, two at least, and the checker.
pub fn start(options: &Options, start: Start<'_>) {
    let pages = usize::try_from(options.memory_mib * 256).unwrap_or(usize::MAX);
    let buffer = Arc::new(Buffer::new(options.seed, pages));
    let writers = thread::available_parallelism().map_or(2, |count| count.get().max(2));
    let pace = options.pages_per_second / writers as u64;
    for writer in 0..writers {
        let buffer = Arc::clone(&buffer);
        start(
            "memory writer",
            Box::new(move |health| buffer.write_for_ever(writer, writers, pace, health)),
        );
    }
    start(
        "memory checker",
        Box::new(move |health| buffer.check_for_ever(health)),
    );
}

impl Buffer {
    fn new(seed: u64, pages: usize) -> Self {
        let zeroed = |count| std::iter::repeat_with(|| AtomicU64::new(0)).take(count).collect();
        Self {
            seed,
            words: zeroed(pages * PAGE_WORDS),
            versions: zeroed(pages),
        }
    }

    /// Writes the pages whose number leaves `writer` when divided by `writers`: once each, then in no order.
    fn write_for_ever(&self, writer: usize, writers: usize, pace: u64, health: &Health) -> Result<()> {
        let own: Vec<usize> = (writer..self.versions.len()).step_by(writers).collect();
        for page in &own {
            self.write(*page, health);
        }
        let burst = (pace * BREATH_MS / 1000).max(1);
        let mut dice = mix(self.seed ^ writer as u64);
        loop {
            for _ in 0..burst {
                dice = mix(dice);
                let Some(page) = usize::try_from(dice)
                    .ok()
                    .and_then(|dice| own.get(dice % own.len()))
                else {
                    return Ok(());
                };
                self.write(*page, health);
            }
            thread::sleep(Duration::from_millis(BREATH_MS));
        }
    }

    /// Writes the next version of a page; only its one writer may call this.
    fn write(&self, page: usize, health: &Health) {
        let old = self.versions[page].load(Ordering::Relaxed);
        self.versions[page].store(old + 1, Ordering::Relaxed);
        fence(Ordering::Release);
        let content = Content::new(self.seed, page as u64, old + 2);
        for (position, word) in (0..).zip(self.page(page)) {
            word.store(content.word(position), Ordering::Relaxed);
        }
        self.versions[page].store(old + 2, Ordering::Release);
        health.page_writes.fetch_add(1, Ordering::Relaxed);
    }

    fn check_for_ever(&self, health: &Health) -> Result<()> {
        loop {
            for page in 0..self.versions.len() {
                if let Some(wrong) = self.check(page) {
                    health.error(wrong);
                }
                if page % CHECKED_AT_ONCE == 0 {
                    thread::sleep(Duration::from_millis(BREATH_MS));
                }
            }
            health.passes.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Says what is wrong with a page; a page that is being written is left for the next pass.
    fn check(&self, page: usize) -> Option<String> {
        let version = self.versions[page].load(Ordering::Acquire);
        if version % 2 == 1 {
            return None;
        }
        let content = Content::new(self.seed, page as u64, version);
        let expected = |position| if version == 0 { 0 } else { content.word(position) };
        let wrong = (0..)
            .zip(self.page(page))
            .find(|(position, word)| word.load(Ordering::Relaxed) != expected(*position))
            .map(|(position, _)| position);
        fence(Ordering::Acquire);
        let moved = self.versions[page].load(Ordering::Relaxed) != version;
        wrong
            .filter(|_| !moved)
            .map(|word| format!("memory: page {page} is not version {version} from word {word} on"))
    }

    fn page(&self, page: usize) -> &[AtomicU64] {
        &self.words[page * PAGE_WORDS..(page + 1) * PAGE_WORDS]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_right_unwritten_and_written() {
        let (buffer, health) = (Buffer::new(1, 2), Health::default());
        buffer.write(1, &health);
        buffer.write(1, &health);
        assert_eq!((buffer.check(0), buffer.check(1)), (None, None));
    }

    #[test]
    fn a_page_of_an_older_version_is_an_error() {
        let (buffer, health) = (Buffer::new(1, 1), Health::default());
        buffer.write(0, &health);
        let old = buffer.words[300].load(Ordering::Relaxed);
        buffer.write(0, &health);
        buffer.words[300].store(old, Ordering::Relaxed);
        let wrong = buffer.check(0).expect("word 300 is old");
        assert!(wrong.contains("word 300"), "{wrong}");
    }

    #[test]
    fn a_page_being_written_is_left_alone() {
        let buffer = Buffer::new(1, 1);
        buffer.versions[0].store(1, Ordering::Relaxed);
        buffer.words[5].store(77, Ordering::Relaxed);
        assert_eq!(buffer.check(0), None);
    }
}
