//! What a worker's thread does.

use std::io;
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};
use std::time::Instant;

use crate::device::DRAIN_TIMEOUT;
use crate::error::Result;
use crate::queue::Served;
use crate::worker::QueueHandler;
use crate::worker::context::Event;
use crate::worker::slot::{Command, Core, Shared};

/// Starts the thread; handler and queues are in the slot.
pub(super) fn spawn<H: QueueHandler>(name: &str, shared: Arc<Shared<H>>) -> io::Result<JoinHandle<()>> {
    Builder::new().name(name.to_owned()).spawn(move || run(&shared))
}

fn run<H: QueueHandler>(shared: &Shared<H>) {
    let mut next = shared.wait(None);
    while let Some(mut core) = next {
        work(shared, &mut core);
        let deadline = Instant::now() + DRAIN_TIMEOUT;
        next = match core.handler.drain(&mut core.context, deadline) {
            Ok(()) => shared.wait(Some(core)),
            Err(error) => {
                tracing::warn!(%error, "requests under way");
                shared.fail(error).then_some(core)
            }
        };
    }
}

/// Works until there is a command other than to run.
fn work<H: QueueHandler>(shared: &Shared<H>, core: &mut Core<H>) {
    if !core.context.interrupt.needs_reset()
        && let Err(error) = serve(shared, core)
    {
        tracing::error!(error = &error as &dyn std::error::Error, "device needs a reset");
        core.context.interrupt.signal_needs_reset();
    }
    while shared.command() == Command::Run {
        if let Err(error) = core.context.wait_for_command() {
            tracing::error!(%error, "worker");
            return;
        }
    }
}

fn serve<H: QueueHandler>(shared: &Shared<H>, core: &mut Core<H>) -> Result<()> {
    let Core {
        handler,
        context,
        fresh,
    } = core;
    if *fresh {
        *fresh = false;
        handler.start(context)?;
    }
    handler.resumed(context)?;
    context.pending.fill(true);
    while shared.command() == Command::Run {
        for queue in 0..context.queues.len() {
            let pending = context.pending.get_mut(queue).map(std::mem::take);
            if pending == Some(true) && handler.serve(context, queue)? == Served::More {
                context.serve_soon(queue);
            }
        }
        for event in context.events(!context.pending.contains(&true))? {
            match event {
                Event::Wake => {}
                Event::Kick(queue) => context.serve_soon(queue),
                Event::Ready(token) => handler.ready(context, token)?,
            }
        }
    }
    Ok(())
}
