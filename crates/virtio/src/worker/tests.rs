use std::sync::Mutex;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::*;
use crate::driver::{PATIENCE, memory};
use crate::event::{clear, descriptor};
use crate::interrupt::Interrupt;
use crate::queue::ActiveQueue;

/// What a handler was called for.
#[derive(Debug, PartialEq, Eq)]
enum Call {
    Start,
    Serve(usize),
    Ready(u32),
    Drain,
    Resumed,
}

/// A handler that reports every call and waits to be let go where a test wants it to.
struct Probe {
    calls: Sender<Call>,
    watched: EventFd,
    /// The next call of `serve` waits for this.
    gate: Arc<Mutex<Option<Receiver<()>>>>,
    drain_fails: Arc<Mutex<bool>>,
    serve_fails: Arc<Mutex<bool>>,
}

impl QueueHandler for Probe {
    fn start(&mut self, context: &mut Context) -> Result<()> {
        self.calls.send(Call::Start).unwrap();
        context.watch(descriptor(&self.watched), 7)
    }

    fn serve(&mut self, context: &mut Context, queue: usize) -> Result<Served> {
        // Before the call is reported: what a test sets then is for the next one.
        let gate = self.gate.lock().unwrap().take();
        let fails = *self.serve_fails.lock().unwrap();
        let _ = self.calls.send(Call::Serve(queue));
        if let Some(gate) = gate {
            gate.recv().unwrap();
        }
        assert_eq!(context.queues[queue].index, queue);
        if fails {
            Err(Error::NotPaused)
        } else {
            Ok(Served::Done)
        }
    }

    fn ready(&mut self, context: &mut Context, token: u32) -> Result<()> {
        clear(&self.watched);
        context.serve_soon(1);
        self.calls.send(Call::Ready(token)).unwrap();
        Ok(())
    }

    fn drain(&mut self, _context: &mut Context, _deadline: Instant) -> Result<()> {
        // Nobody may listen any more.
        let fails = *self.drain_fails.lock().unwrap();
        let _ = self.calls.send(Call::Drain);
        if fails {
            Err(Error::Drain { after: PATIENCE })
        } else {
            Ok(())
        }
    }

    fn resumed(&mut self, _context: &mut Context) -> Result<()> {
        let _ = self.calls.send(Call::Resumed);
        Ok(())
    }
}

/// A worker and what a test holds of its handler.
struct Bench {
    worker: Worker<Probe>,
    calls: Receiver<Call>,
    watched: EventFd,
    kicks: Vec<EventFd>,
    interrupt: Interrupt,
    gate: Arc<Mutex<Option<Receiver<()>>>>,
    drain_fails: Arc<Mutex<bool>>,
    serve_fails: Arc<Mutex<bool>>,
}

impl Bench {
    fn new() -> Self {
        let (sender, calls) = channel();
        let watched = EventFd::new(EFD_NONBLOCK).unwrap();
        let (gate, drain_fails, serve_fails): (Arc<Mutex<_>>, Arc<Mutex<_>>, Arc<Mutex<_>>) =
            Default::default();
        let probe = Probe {
            calls: sender,
            watched: watched.try_clone().unwrap(),
            gate: Arc::clone(&gate),
            drain_fails: Arc::clone(&drain_fails),
            serve_fails: Arc::clone(&serve_fails),
        };
        let kicks = (0..2).map(|_| EventFd::new(EFD_NONBLOCK).unwrap()).collect();
        let interrupt = Interrupt::new().unwrap();
        let worker = Worker::new("probe", probe);
        Self {
            worker,
            calls,
            watched,
            kicks,
            interrupt,
            gate,
            drain_fails,
            serve_fails,
        }
    }

    fn activate(&mut self, paused: bool) {
        let queue = |(index, kick): (usize, &EventFd)| ActiveQueue {
            queue: QueueState {
                size: 16,
                ..QueueState::default()
            }
            .to_queue(16)
            .unwrap(),
            kick: kick.try_clone().unwrap(),
            index,
        };
        let activation = Activation {
            memory: memory(),
            queues: self.kicks.iter().enumerate().map(queue).collect(),
            interrupt: self.interrupt.clone(),
            features: 0,
            paused,
        };
        self.worker.activate(activation).unwrap();
    }

    fn expect(&self, calls: &[Call]) {
        for call in calls {
            assert_eq!(&self.calls.recv_timeout(PATIENCE).unwrap(), call);
        }
    }

    fn started() -> Self {
        let mut bench = Self::new();
        bench.activate(false);
        bench.expect(&[Call::Start, Call::Resumed, Call::Serve(0), Call::Serve(1)]);
        bench
    }

    /// Has the thread block in its next call of `serve` until the result is used or dropped.
    fn block(&self) -> Sender<()> {
        let (sender, receiver) = channel();
        *self.gate.lock().unwrap() = Some(receiver);
        self.kicks[0].write(1).unwrap();
        self.expect(&[Call::Serve(0)]);
        sender
    }
}

#[test]
fn kicks_and_watched_descriptors_reach_the_handler() {
    let bench = Bench::started();
    bench.kicks[1].write(1).unwrap();
    bench.expect(&[Call::Serve(1)]);
    bench.watched.write(1).unwrap();
    bench.expect(&[Call::Ready(7), Call::Serve(1)]);
    bench.kicks[0].write(1).unwrap();
    bench.expect(&[Call::Serve(0)]);
}

#[test]
fn a_parked_worker_does_nothing_until_it_is_resumed() {
    let mut bench = Bench::started();
    bench.worker.pause().unwrap();
    bench.expect(&[Call::Drain]);
    bench.kicks[1].write(1).unwrap();
    bench.watched.write(1).unwrap();
    assert_eq!(bench.worker.queue_states().unwrap().len(), 2);
    assert!(bench.worker.look(|_| ()).is_ok());
    assert!(bench.calls.try_recv().is_err());
    bench.worker.resume();
    bench.expect(&[Call::Resumed, Call::Serve(0), Call::Serve(1)]);
}

#[test]
fn a_worker_activated_paused_starts_when_it_is_resumed() {
    let mut bench = Bench::new();
    bench.activate(true);
    assert_eq!(bench.worker.queue_states().unwrap().len(), 2);
    bench.worker.pause().unwrap();
    assert!(bench.calls.try_recv().is_err());
    bench.worker.resume();
    bench.expect(&[Call::Start, Call::Resumed, Call::Serve(0), Call::Serve(1)]);
}

#[test]
fn a_worker_at_work_cannot_be_looked_at_or_activated() {
    let mut bench = Bench::started();
    assert!(matches!(bench.worker.queue_states(), Err(Error::NotPaused)));
    assert!(matches!(bench.worker.with_handler(|_| ()), Err(Error::NotPaused)));
    let activation = Activation {
        memory: memory(),
        queues: Vec::new(),
        interrupt: bench.interrupt.clone(),
        features: 0,
        paused: false,
    };
    assert!(matches!(bench.worker.activate(activation), Err(Error::Active)));
}

#[test]
fn a_pause_that_cannot_complete_leaves_the_worker_at_work() {
    let mut bench = Bench::started();
    *bench.drain_fails.lock().unwrap() = true;
    assert!(matches!(bench.worker.pause(), Err(Error::Drain { .. })));
    bench.expect(&[Call::Drain, Call::Resumed, Call::Serve(0), Call::Serve(1)]);
    bench.kicks[1].write(1).unwrap();
    bench.expect(&[Call::Serve(1)]);
    assert!(matches!(bench.worker.reset(), Err(Error::Drain { .. })));
    bench.expect(&[Call::Drain, Call::Resumed, Call::Serve(0), Call::Serve(1)]);
    *bench.drain_fails.lock().unwrap() = false;
    bench.worker.pause().unwrap();
}

#[test]
fn a_reset_gives_the_handler_back_for_another_activation() {
    let mut bench = Bench::started();
    for paused in [false, true] {
        if paused {
            bench.worker.pause().unwrap();
        }
        bench.worker.reset().unwrap();
        bench.expect(&[Call::Drain]);
        assert!(bench.worker.queue_states().unwrap().is_empty());
        bench.worker.with_handler(|_| ()).unwrap();
        bench.activate(false);
        bench.expect(&[Call::Start, Call::Resumed, Call::Serve(0), Call::Serve(1)]);
    }
}

#[test]
fn an_error_asks_for_a_reset_and_silences_the_handler() {
    let mut bench = Bench::started();
    *bench.serve_fails.lock().unwrap() = true;
    bench.kicks[0].write(1).unwrap();
    bench.expect(&[Call::Serve(0)]);
    let event = bench.interrupt.event();
    let mut descriptors = [rustix::event::PollFd::from_borrowed_fd(
        descriptor(event),
        rustix::event::PollFlags::IN,
    )];
    rustix::event::poll(&mut descriptors, None).unwrap();
    assert!(bench.interrupt.needs_reset());
    bench.kicks[1].write(1).unwrap();
    bench.worker.pause().unwrap();
    bench.worker.resume();
    bench.worker.pause().unwrap();
    bench.worker.reset().unwrap();
    let rest: Vec<Call> = bench.calls.try_iter().collect();
    assert!(rest.iter().all(|call| *call == Call::Drain), "{rest:?}");
}

/// The thread may wait in a page fault that is served by whoever pauses it.
#[test]
fn a_pause_waits_for_a_blocked_thread_and_holds_nothing_that_others_need() {
    let mut bench = Bench::started();
    let release = bench.block();
    let shared = match &bench.worker.place {
        Place::Active(active) => Arc::clone(&active.shared),
        Place::Resting(_) | Place::Moving => panic!("active"),
    };
    let helper = thread::spawn(move || {
        while shared.command() == Command::Run {
            thread::yield_now();
        }
        // The slot can be looked at while the pause waits, and the thread be let go by another.
        assert!(shared.with_core(|_| ()).is_err());
        release.send(()).unwrap();
    });
    bench.worker.pause().unwrap();
    helper.join().unwrap();
    bench.expect(&[Call::Drain]);
}

#[test]
fn a_dropped_worker_ends_its_thread() {
    let mut bench = Bench::started();
    let shared = match &bench.worker.place {
        Place::Active(active) => Arc::downgrade(&active.shared),
        Place::Resting(_) | Place::Moving => panic!("active"),
    };
    bench.worker = Worker::new("other", Bench::new().worker_handler());
    assert!(shared.upgrade().is_none());
}

#[test]
fn a_dropped_worker_that_cannot_come_to_rest_ends_all_the_same() {
    let mut bench = Bench::started();
    *bench.drain_fails.lock().unwrap() = true;
    bench.worker = Worker::new("other", Bench::new().worker_handler());
    // The handler is dropped with its thread, and its end of the channel with it.
    loop {
        match bench.calls.recv_timeout(PATIENCE) {
            Ok(_) => {}
            Err(error) => break assert_eq!(error, RecvTimeoutError::Disconnected),
        }
    }
}

impl Bench {
    fn worker_handler(mut self) -> Probe {
        match std::mem::replace(&mut self.worker.place, Place::Moving) {
            Place::Resting(handler) => handler,
            Place::Active(_) | Place::Moving => panic!("at rest"),
        }
    }
}
