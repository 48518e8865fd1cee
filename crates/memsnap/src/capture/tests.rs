//! The races, one at a time: what other threads would do is done here by hand, or hammered.

mod discards;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::RwLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use snapfile::ChunkSize;
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::chunk_states::{ChunkState, ChunkStates};
use crate::geometry::{RUN, memory_map};
use crate::options::KernelPath;
use crate::sync::lock;

const CHUNK: u32 = 64 << 10;
/// Long enough for a write that is let go, on any machine.
const SOON: Duration = Duration::from_secs(10);

/// An engine over two runs of populated memory, nothing protected; `None` where there is no userfaultfd.
fn engine(chunk: u32) -> Option<(GuestMemoryMmap<()>, Engine)> {
    engine_on(chunk, KernelPath::Auto)
}

fn engine_on(chunk: u32, kernel: KernelPath) -> Option<(GuestMemoryMmap<()>, Engine)> {
    if let Err(error) = uffd::Uffd::supported_features() {
        eprintln!("SKIPPED: {error}");
        return None;
    }
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 2 * RUN)]).unwrap();
    memory.write_slice(&vec![1; 2 * RUN], GuestAddress(0)).unwrap();
    let layout = ChunkLayout::new(&memory_map(&memory).unwrap(), ChunkSize::new(chunk).unwrap());
    let options = CaptureOptions {
        max_arm: SOON,
        kernel,
        ..CaptureOptions::default()
    };
    let engine = Engine::guarded(&memory, &layout, options).unwrap();
    Some((memory, engine))
}

/// As after a freeze.
fn freeze(engine: &Engine) {
    let mut closed = engine.close_gate();
    arm::freeze(engine);
    *closed.gate = Gate::Draining;
}

/// Whether the first page of a chunk is write-protected, as the page map has it.
fn is_protected(engine: &Engine, chunk: u64) -> bool {
    let span = engine.geometry.chunk(chunk);
    let address = engine.geometry.region(span.region).host_address(span.bytes.start);
    let mut entry = [0; 8];
    let offset = (address / uffd::PAGE_SIZE * 8) as u64;
    File::open("/proc/self/pagemap")
        .unwrap()
        .read_exact_at(&mut entry, offset)
        .unwrap();
    u64::from_ne_bytes(entry) & 1 << 57 != 0
}

/// Runs `test` with the handler serving; ends the handler however the test ends.
fn with_handler(engine: &Engine, test: impl FnOnce()) {
    struct End<'a>(&'a Engine);
    impl Drop for End<'_> {
        fn drop(&mut self) {
            self.0.release();
            self.0.end_handler();
        }
    }
    thread::scope(|scope| {
        scope.spawn(|| handler::main(engine));
        let _end = End(engine);
        test();
    });
}

/// Writes to a chunk from another thread; the receiver hears when the write is through.
fn write_to(memory: &GuestMemoryMmap<()>, chunk: u64) -> mpsc::Receiver<()> {
    let (sender, receiver) = mpsc::channel();
    let memory = memory.clone();
    thread::spawn(move || {
        memory
            .store(2u64, GuestAddress(chunk * u64::from(CHUNK)), Ordering::Relaxed)
            .unwrap();
        sender.send(()).unwrap();
    });
    receiver
}

#[test]
fn a_writer_goes_on_as_soon_as_the_claimer_has_copied_its_chunk() {
    let Some((memory, engine)) = engine(CHUNK) else {
        return;
    };
    freeze(&engine);
    with_handler(&engine, || {
        assert!(engine.states.claim(5));
        let written = write_to(&memory, 5);
        while engine.states.get(5) != ChunkState::Wanted {
            thread::yield_now();
        }
        assert!(
            is_protected(&engine, 5) && written.try_recv().is_err(),
            "it waits for the copy"
        );
        engine.publish(5).unwrap();
        written
            .recv_timeout(SOON)
            .expect("nothing else need happen for the writer to go on");
        assert_eq!(engine.counters.stall.count(), 1);
    });
}

#[test]
fn lifting_a_run_leaves_out_what_another_thread_is_copying() {
    let Some((_memory, engine)) = engine(CHUNK) else {
        return;
    };
    freeze(&engine);
    let claimed = [0, 7, 8, 31];
    assert!(claimed.iter().all(|chunk| engine.states.claim(*chunk)));
    run_copy::RunCopy::new(&engine)
        .take(&engine.geometry.run(0))
        .unwrap();
    for chunk in 0..32 {
        assert_eq!(
            is_protected(&engine, chunk),
            claimed.contains(&chunk),
            "chunk {chunk}"
        );
    }
    assert!(is_protected(&engine, 32), "the next run is not concerned");
}

#[test]
fn pending_means_protected_and_touched_means_listed_while_all_race() {
    let Some((memory, engine)) = engine(4096) else {
        return;
    };
    hammer(&engine, |random, chunk| {
        let address = GuestAddress(chunk * 4096);
        memory.store(random, address, Ordering::Relaxed).unwrap();
    });
}

/// Lets two threads do `touch` to the first eight chunks, with ever-changing numbers, while a third protects
/// them again; checks now and then that what the freeze relies on holds.
fn hammer(engine: &Engine, touch: impl Fn(u64, u64) + Sync) {
    arm::arm(engine, Instant::now());
    let (pause, stop) = (RwLock::new(()), AtomicBool::new(false));
    let write = |seed: u64| {
        let mut random = seed;
        while !stop.load(Ordering::Relaxed) {
            let _running = pause.read().unwrap();
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            touch(random, (random >> 33) % 8);
        }
    };
    let mut broken = None;
    thread::scope(|scope| {
        scope.spawn(|| {
            with_handler(engine, || {
                thread::scope(|writers| {
                    writers.spawn(|| write(1));
                    writers.spawn(|| write(2));
                });
            });
        });
        for _ in 0..2000 {
            for _ in 0..20 {
                arm::protect_touched(engine, None);
            }
            let _paused = pause.write().unwrap();
            let _closed = engine.close_gate();
            broken = broken.or_else(|| (0..8).find_map(|chunk| not_armed(engine, chunk)));
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert_eq!(broken, None);
    assert!(
        engine.counters.stall_arming.count() > 0,
        "the writers met protection"
    );
}

/// What the freeze relies on: pending is protected, touched is listed. The chunk's state where that fails.
fn not_armed(engine: &Engine, chunk: u64) -> Option<(u64, ChunkState)> {
    let state = engine.states.get(chunk);
    let armed = match state {
        ChunkState::Pending => is_protected(engine, chunk),
        ChunkState::Touched => lock(&engine.touched).contains(&chunk),
        _ => false,
    };
    (!armed).then_some((chunk, state))
}

#[test]
fn a_panic_of_the_handler_lets_its_writer_go_and_fails_the_capture() {
    let Some((memory, mut engine)) = engine(CHUNK) else {
        return;
    };
    freeze(&engine);
    // Too few states: the handler fails at the first fault beyond them.
    engine.states = ChunkStates::new(1, ChunkState::Pending);
    with_handler(&engine, || {
        write_to(&memory, 5)
            .recv_timeout(SOON)
            .expect("the writer goes on");
        write_to(&memory, 40)
            .recv_timeout(SOON)
            .expect("so does the next");
    });
    assert!(engine.should_stop());
    assert!(matches!(
        engine.take_failure(),
        Error::Panicked {
            thread: "fault handler",
            ..
        }
    ));
}

#[test]
fn waiters_are_let_go_oldest_first_when_buffers_come_back() {
    let Some((memory, mut engine)) = engine(CHUNK) else {
        return;
    };
    engine.options.max_stall = SOON;
    freeze(&engine);
    let limit = usize::try_from(engine.pool.limit_bytes()).unwrap() / CHUNK as usize;
    let mut taken: Vec<_> = (0..limit).map(|_| engine.pool.take().unwrap()).collect();
    with_handler(&engine, || {
        let first = write_to(&memory, 5);
        wait_for_throttled(&engine, 1);
        let second = write_to(&memory, 40);
        wait_for_throttled(&engine, 2);
        engine.pool.give(taken.pop().unwrap());
        first.recv_timeout(SOON).expect("the first gets the buffer");
        assert_eq!(
            engine.states.get(40),
            ChunkState::Pending,
            "the second still waits"
        );
        engine.pool.give(taken.pop().unwrap());
        second.recv_timeout(SOON).expect("the second gets the next");
    });
}

fn wait_for_throttled(engine: &Engine, count: u64) {
    while engine.counters.throttled.get() < count {
        thread::yield_now();
    }
}
