//! Who runs first when there are fewer cores than threads: the guest before the walkers, the fault handler
//! before all.
//!
//! Both are requests for the calling thread only. A process that may not ask for them does without.

#![expect(unsafe_code, reason = "no safe wrapper sets a thread's scheduling policy")]

/// How much nicer walkers are than the guest. They keep a quarter of a core that both want.
const WALKER_NICENESS: i32 = 5;

/// Lets the other threads of the process go first.
pub(crate) fn run_in_background() {
    let _ = rustix::process::nice(WALKER_NICENESS);
}

/// Lets the calling thread run as soon as it is woken, however busy the cores are: a writer is waiting.
/// For a thread that sleeps unless it has a few microseconds of work.
pub(crate) fn run_at_once() {
    let parameters = libc::sched_param { sched_priority: 1 };
    let policy = libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK;
    // SAFETY: `parameters` outlives the call, which concerns the scheduling of the calling thread only.
    let _ = unsafe { libc::sched_setscheduler(0, policy, &raw const parameters) };
}
