//! Discards against one other thing at a time.

use super::*;

/// Discards pages of the first region as `Discards` does.
fn discard(engine: &Engine, guest_address: u64, len: usize) {
    let span = engine.geometry.span_at(guest_address, len).unwrap();
    let _held = engine.control.capturing().pass();
    engine.discard(&span).unwrap();
}

fn address_of(chunk: u64) -> u64 {
    chunk * u64::from(CHUNK)
}

#[test]
fn a_discard_waits_for_whoever_has_claimed_a_chunk_of_it() {
    let Some((memory, engine)) = engine(CHUNK) else {
        return;
    };
    freeze(&engine);
    with_handler(&engine, || {
        assert!(engine.states.claim(5));
        thread::scope(|scope| {
            // One page of the chunk is enough.
            let discarder = scope.spawn(|| discard(&engine, address_of(5) + 4096, 4096));
            while engine.states.get(5) != ChunkState::Wanted {
                thread::yield_now();
            }
            let byte: u8 = memory.read_obj(GuestAddress(address_of(5) + 4096)).unwrap();
            assert!(byte == 1 && !discarder.is_finished(), "it waits for the copy");
            engine.publish(5).unwrap();
            discarder.join().unwrap();
            let byte: u8 = memory.read_obj(GuestAddress(address_of(5) + 4096)).unwrap();
            assert_eq!(byte, 0);
        });
    });
    assert!(!engine.should_stop());
}

#[test]
fn a_writer_waits_for_a_discard_that_has_claimed_its_chunk_and_no_longer() {
    let Some((memory, engine)) = engine(CHUNK) else {
        return;
    };
    freeze(&engine);
    with_handler(&engine, || {
        let mut present = Vec::new();
        let aside = engine.copy_aside(5, &mut present, || engine.pool.take_spare());
        let discard::Aside::Copied(copy) = aside.unwrap() else {
            panic!("there are buffers")
        };
        let written = write_to(&memory, 5);
        while engine.states.get(5) != ChunkState::Wanted {
            thread::yield_now();
        }
        engine.publish(5).unwrap();
        written.recv_timeout(SOON).expect("the writer goes on");
        assert!(copy.buffer.unwrap().iter().all(|byte| *byte == 1));
    });
}

#[test]
fn discards_are_read_of_while_writers_wait_for_buffers() {
    let Some((memory, mut engine)) = engine(CHUNK) else {
        return;
    };
    engine.options.max_stall = SOON;
    freeze(&engine);
    let limit = usize::try_from(engine.pool.limit_bytes()).unwrap() / CHUNK as usize;
    let mut taken: Vec<_> = (0..limit).map(|_| engine.pool.take().unwrap()).collect();
    with_handler(&engine, || {
        let written = write_to(&memory, 5);
        wait_for_throttled(&engine, 1);
        assert!(engine.states.claim(40));
        engine.publish(40).unwrap();
        discard(&engine, address_of(40), CHUNK as usize);
        assert!(written.try_recv().is_err(), "the writer waits on");
        engine.pool.give(taken.pop().unwrap());
        written.recv_timeout(SOON).expect("until there is a buffer");
    });
    assert!(!engine.should_stop());
}

#[test]
fn a_discard_leaves_half_of_the_buffers_to_writers() {
    let Some((memory, engine)) = engine(CHUNK) else {
        return;
    };
    freeze(&engine);
    let limit = usize::try_from(engine.pool.limit_bytes()).unwrap() / CHUNK as usize;
    let mut taken: Vec<_> = (0..limit / 2).map(|_| engine.pool.take().unwrap()).collect();
    with_handler(&engine, || {
        thread::scope(|scope| {
            let discarder = scope.spawn(|| discard(&engine, address_of(5), CHUNK as usize));
            write_to(&memory, 40)
                .recv_timeout(SOON)
                .expect("a writer gets a buffer");
            assert!(!discarder.is_finished(), "a discard does not");
            // The copy of the write is the last that was taken.
            let copy = engine.queue.pop().unwrap();
            engine.pool.give(copy.buffer.unwrap());
            assert_eq!(engine.states.get(5), ChunkState::Pending);
            engine.pool.give(taken.pop().unwrap());
            discarder.join().unwrap();
        });
    });
}

#[test]
fn pending_means_protected_while_discards_race_too() {
    for kernel in [KernelPath::Auto, KernelPath::PopulateFirst] {
        let Some((memory, engine)) = engine_on(4096, kernel) else {
            return;
        };
        hammer(&engine, |random, chunk| {
            if random >> 63 == 0 {
                discard(&engine, chunk * 4096, 4096);
            } else {
                let address = GuestAddress(chunk * 4096);
                memory.store(random, address, Ordering::Relaxed).unwrap();
            }
        });
        assert!(engine.counters.discarded_bytes.get() > 0);
        assert!(!engine.should_stop(), "no discard is taken for a foreign one");
    }
}

#[test]
fn a_discard_is_not_stuck_when_the_handler_has_given_up() {
    let Some((memory, mut engine)) = engine(CHUNK) else {
        return;
    };
    freeze(&engine);
    // Too few states: the handler fails at every fault beyond them until it gives up.
    let states = std::mem::replace(&mut engine.states, ChunkStates::new(1, ChunkState::Copied));
    assert_eq!(states.get(40), ChunkState::Pending);
    with_handler(&engine, || {
        for chunk in 5..15 {
            write_to(&memory, chunk)
                .recv_timeout(SOON)
                .expect("the writer goes on");
        }
        discard(&engine, 0, CHUNK as usize);
    });
    assert!(matches!(engine.take_failure(), Error::Panicked { .. }));
}
