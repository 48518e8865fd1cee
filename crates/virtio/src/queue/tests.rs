use super::*;
use crate::driver::Driver;
use crate::rng::Rng;

/// A queue of 16 entries and the driver that shares its ring; the driver's device is idle.
fn queue(event_idx: bool) -> (Driver, ActiveQueue, Interrupt) {
    let mut driver = Driver::new(Rng::new(), &crate::driver::memory());
    driver.features = if event_idx {
        crate::driver::RING_FEATURES
    } else {
        0
    };
    let ring = driver.place_ring(16);
    let state = QueueState {
        size: 16,
        ready: true,
        event_idx,
        descriptor_table: ring.descriptors,
        available_ring: ring.available,
        used_ring: ring.used,
        next_avail: 0,
        next_used: 0,
    };
    driver.rings.push(ring);
    let kick = EventFd::new(vmm_sys_util::eventfd::EFD_NONBLOCK).unwrap();
    let queue = ActiveQueue {
        queue: state.to_queue(16).unwrap(),
        kick,
        index: 0,
    };
    (driver, queue, Interrupt::new().unwrap())
}

/// Serves every available chain without writing anything; returns how many there were.
fn serve(driver: &Driver, queue: &mut ActiveQueue) -> (usize, Served) {
    let mut count = 0;
    let memory = driver.memory.clone();
    let served = queue.for_each_chain(&memory, |queue, chain| {
        count += 1;
        queue.complete(&memory, chain.head_index(), 0)
    });
    (count, served.unwrap())
}

#[test]
fn every_available_chain_is_handed_out_once_and_in_order() {
    for event_idx in [false, true] {
        let (mut driver, mut queue, _) = queue(event_idx);
        assert_eq!(serve(&driver, &mut queue), (0, Served::Done));
        let heads: Vec<u16> = (0..16).map(|_| driver.add(0, &[(0x1000, 1)], &[])).collect();
        assert_eq!(serve(&driver, &mut queue), (16, Served::Done));
        assert_eq!(serve(&driver, &mut queue), (0, Served::Done));
        for head in heads {
            assert_eq!(driver.try_used(0), Some((head, 0)));
        }
        assert_eq!((queue.queue.next_avail(), queue.queue.next_used()), (16, 16));
    }
}

#[test]
fn a_driver_that_never_stops_is_served_one_round_at_a_time() {
    let (mut driver, mut queue, _) = queue(true);
    driver.add(0, &[(0x1000, 1)], &[]);
    let memory = driver.memory.clone();
    let mut rounds = 0;
    let served = queue.for_each_chain(&memory, |queue, chain| {
        rounds += 1;
        queue.complete(&memory, chain.head_index(), 0)?;
        driver.try_used(0).unwrap();
        driver.add(0, &[(0x1000, 1)], &[]);
        Ok(())
    });
    assert_eq!((served.unwrap(), rounds), (Served::More, 17));
}

#[test]
fn an_interrupt_comes_only_if_the_driver_wants_one() {
    let (mut driver, mut queue, interrupt) = queue(false);
    let raised = |interrupt: &Interrupt| interrupt.event().read().is_ok();
    for (flags, wanted) in [(0u16, true), (1, false), (0, true)] {
        driver.store(driver.rings[0].available, &flags.to_le_bytes());
        driver.add(0, &[(0x1000, 1)], &[]);
        serve(&driver, &mut queue);
        queue.notify(&driver.memory, &interrupt).unwrap();
        assert_eq!(raised(&interrupt), wanted, "flags {flags}");
    }
    let (mut driver, mut queue, interrupt) = self::queue(true);
    // The driver asks for an interrupt with the third used chain: used_event is 2.
    driver.store(driver.rings[0].available + 4 + 2 * 16, &2u16.to_le_bytes());
    for wanted in [false, false, true, false] {
        driver.add(0, &[(0x1000, 1)], &[]);
        serve(&driver, &mut queue);
        queue.notify(&driver.memory, &interrupt).unwrap();
        assert_eq!(raised(&interrupt), wanted);
    }
}

#[test]
fn a_chain_that_was_put_back_is_taken_again() {
    let (mut driver, mut queue, _) = queue(true);
    let head = driver.add(0, &[(0x1000, 1)], &[]);
    for _ in 0..3 {
        assert_eq!(queue.pop(&driver.memory).unwrap().unwrap().head_index(), head);
        queue.unpop();
    }
}

#[test]
fn a_queue_that_the_driver_left_out_is_empty_and_silent() {
    let (driver, mut queue, interrupt) = queue(true);
    queue.queue = QueueState {
        size: 16,
        ..QueueState::default()
    }
    .to_queue(16)
    .unwrap();
    assert_eq!(serve(&driver, &mut queue), (0, Served::Done));
    queue.notify(&driver.memory, &interrupt).unwrap();
    assert!(interrupt.event().read().is_err());
}

#[test]
fn a_state_survives_the_way_into_a_queue_and_back() {
    let state = QueueState {
        size: 8,
        ready: true,
        event_idx: true,
        descriptor_table: 0x1000,
        available_ring: 0x2002,
        used_ring: 0x3004,
        next_avail: 0xffff,
        next_used: 0xfffe,
    };
    assert_eq!(QueueState::of(&state.to_queue(16).unwrap()), state);
    assert!(state.to_queue(4).is_err());
    assert!(
        QueueState {
            used_ring: 0x3002,
            ..state
        }
        .to_queue(16)
        .is_err()
    );
}
