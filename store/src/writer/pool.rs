//! A few threads that do CPU or disk work for a writer, bounded in number and with a bounded queue: submitting to a
//! full queue waits.

use crate::error::{Error, Kind, Result};
use crossbeam_channel::{Receiver, Sender, bounded};

type Job = Box<dyn FnOnce() + Send>;

/// Named threads behind one queue.
pub(super) struct Pool {
    jobs: Sender<Job>,
}

/// The outcome of a job, once it is there.
pub(super) struct Ticket<T>(Receiver<Result<T>>);

impl Pool {
    /// `threads` threads and a queue of as many jobs.
    ///
    /// # Errors
    /// `Unavailable` when a thread cannot be created.
    pub(super) fn new(name: &str, threads: usize) -> Result<Self> {
        let (jobs, queue) = bounded::<Job>(threads);
        for _ in 0..threads {
            let queue = queue.clone();
            let run = move || queue.into_iter().for_each(|job| job());
            let spawned = std::thread::Builder::new().name(name.to_owned()).spawn(run);
            spawned.map_err(|error| Error::io("cannot start a thread", name, error))?;
        }
        Ok(Self { jobs })
    }

    /// Queues a job.
    pub(super) fn run<T: Send + 'static>(
        &self,
        job: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Ticket<T> {
        let (done, outcome) = bounded(1);
        let job = Box::new(move || {
            // The submitter may have dropped the ticket.
            let _ = done.send(job());
        });
        // A send fails only when every thread died; the ticket then reports it.
        let _ = self.jobs.send(job);
        Ticket(outcome)
    }
}

impl<T> Ticket<T> {
    /// Waits for the outcome.
    ///
    /// # Errors
    /// The job's own; `Internal` when its thread died.
    pub(super) fn wait(self) -> Result<T> {
        let died = |error| Error::new(Kind::Internal, "a worker thread died").caused_by(error);
        self.0.recv().map_err(died)?
    }

    /// Whether [`Self::wait`] would return at once.
    pub(super) fn is_ready(&self) -> bool {
        !self.0.is_empty()
    }
}
