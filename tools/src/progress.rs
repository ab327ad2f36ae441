//! Progress of a long command: one bar on standard error when that is a terminal. Never on standard output.

use std::io::IsTerminal as _;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use store::Work;

use crate::exit::complain;

const REDRAW_INTERVAL: Duration = Duration::from_millis(200);
const BYTES: &str = "{msg:<12} [{bar:30}] {bytes}/{total_bytes}  {bytes_per_sec}  {eta} left";
const SOME_BYTES: &str = "{msg:<12} {spinner} {bytes}  {bytes_per_sec}  {elapsed}";
const ITEMS: &str = "{msg:<12} [{bar:30}] {pos}/{len}  {eta} left";

/// Receives the libraries' progress. One phase at a time; beginning the next ends the one before.
pub(crate) struct Progress {
    bar: Mutex<Option<ProgressBar>>,
    draw: bool,
    notes: bool,
}

impl Progress {
    /// A bar is drawn only on a terminal, and only when neither `json` nor `quiet` nor more log lines (`verbose`) were
    /// requested. Notes are left out only when `quiet`.
    pub(crate) fn new(json: bool, quiet: bool, verbose: bool) -> Progress {
        let draw = !json && !quiet && !verbose && std::io::stderr().is_terminal();
        Progress { bar: Mutex::new(None), draw, notes: !quiet }
    }

    /// Clears the bar, so that other output can be written there.
    pub(crate) fn clear(&self) {
        if let Some(bar) = self.bar().take() {
            bar.finish_and_clear();
        }
    }

    fn bar(&self) -> MutexGuard<'_, Option<ProgressBar>> {
        self.bar.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl store::Progress for Progress {
    fn begin(&self, what: &str, work: Work) {
        self.clear();
        if !self.draw {
            return;
        }
        let (bar, template) = match work {
            Work::Bytes(total) => (ProgressBar::new(total), BYTES),
            Work::SomeBytes => (ProgressBar::no_length(), SOME_BYTES),
            Work::Items(total) => (ProgressBar::new(total), ITEMS),
        };
        let style =
            ProgressStyle::with_template(template).expect("the template is a constant that a test parses");
        bar.set_style(style.progress_chars("=> "));
        bar.set_message(what.to_owned());
        bar.enable_steady_tick(REDRAW_INTERVAL);
        *self.bar() = Some(bar);
    }

    fn advance(&self, amount: u64) {
        if let Some(bar) = self.bar().as_ref() {
            bar.inc(amount);
        }
    }

    fn note(&self, message: &str) {
        if !self.notes {
            return;
        }
        match self.bar().as_ref() {
            Some(bar) => bar.suspend(|| complain(message)),
            None => complain(message),
        }
    }

    fn end(&self) {
        self.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_templates_parse() {
        for template in [BYTES, SOME_BYTES, ITEMS] {
            ProgressStyle::with_template(template).unwrap();
        }
    }
}
