//! Exit codes, and the text of errors for a person or a program. The one place where errors are printed.

use std::fmt;
use std::io::Write as _;
use std::process::ExitCode;

use serde::{Deserialize, Serialize};
use store::Kind;

use crate::human;

/// Exit code of every error but an absence.
pub(crate) const FAILED: u8 = 2;

/// How a command without an error ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Exit code 0.
    Done,
    /// The answer is no: exit code 1.
    No,
    /// Part of it could not be done and was reported: exit code 3.
    Partial,
    /// That of another process of ours, which reported why.
    Passed(u8),
}

impl Outcome {
    pub(crate) fn code(self) -> u8 {
        match self {
            Outcome::Done => 0,
            Outcome::No => 1,
            Outcome::Partial => 3,
            Outcome::Passed(code) => code,
        }
    }
}

/// The reader of our standard output has closed it: not an error, and no more output is needed.
#[derive(Debug)]
pub(crate) struct OutputClosed;

impl fmt::Display for OutputClosed {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("standard output was closed")
    }
}

impl std::error::Error for OutputClosed {}

/// The object that the user named is absent: the answer is no. An object missing inside the store is damage instead.
#[derive(Debug)]
pub(crate) struct Absent(store::Error);

impl fmt::Display for Absent {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

impl std::error::Error for Absent {}

/// For results about an object that the user named.
pub(crate) trait Asked<T> {
    /// Makes NotFound the answer no; other errors are unchanged.
    fn asked(self) -> anyhow::Result<T>;
}

impl<T> Asked<T> for store::Result<T> {
    fn asked(self) -> anyhow::Result<T> {
        self.map_err(|error| match error.kind() {
            Kind::NotFound => Absent(error).into(),
            _ => error.into(),
        })
    }
}

/// An error that another process of ours reported, passed on unchanged.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Relayed {
    kind: String,
    message: String,
    exit_code: u8,
}

impl Relayed {
    /// The error in the form for another process.
    pub(crate) fn of(error: &anyhow::Error) -> Relayed {
        Relayed { kind: kind_word(error).to_owned(), message: message_of(error), exit_code: code_of(error) }
    }
}

impl fmt::Display for Relayed {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.message)
    }
}

impl std::error::Error for Relayed {}

/// Ends the run: reports an error, if there is one, and returns the code.
pub(crate) fn finish(result: anyhow::Result<Outcome>, json: bool) -> ExitCode {
    match result {
        Ok(outcome) => ExitCode::from(outcome.code()),
        Err(error) if error.is::<OutputClosed>() => ExitCode::SUCCESS,
        Err(error) => {
            report(&error, json);
            ExitCode::from(code_of(&error))
        }
    }
}

/// Ends a run with invalid arguments or a request for help. The `--json` flag is not parsed then, only searched for.
pub(crate) fn usage(error: &clap::Error) -> ExitCode {
    let typed_json = std::env::args_os().any(|argument| argument == "--json");
    if error.use_stderr() && typed_json {
        let message = error.render().to_string();
        report(&store::Error::new(Kind::Invalid, message.trim_end()).into(), true);
    } else {
        // If it cannot be printed, there is no other way to report it.
        let _ = error.print();
    }
    ExitCode::from(if error.use_stderr() { FAILED } else { 0 })
}

fn code_of(error: &anyhow::Error) -> u8 {
    match error.downcast_ref::<Relayed>() {
        Some(relayed) => relayed.exit_code,
        None if error.is::<Absent>() => Outcome::No.code(),
        None => FAILED,
    }
}

/// The full text of an error. A store error includes its own sources, so the chain ends with it.
fn message_of(error: &anyhow::Error) -> String {
    let mut parts = Vec::new();
    for cause in error.chain() {
        parts.push(cause.to_string());
        if cause.is::<store::Error>() {
            break;
        }
    }
    parts.join(": ")
}

/// The word for an error's kind in JSON.
fn kind_word(error: &anyhow::Error) -> &str {
    if let Some(relayed) = error.downcast_ref::<Relayed>() {
        return &relayed.kind;
    }
    let ours = error.downcast_ref::<Absent>().map(|absent| &absent.0).or_else(|| error.downcast_ref());
    match ours.map_or(Kind::Internal, store::Error::kind) {
        Kind::NotFound => "not_found",
        Kind::Conflict => "conflict",
        Kind::Fenced => "fenced",
        Kind::Unavailable => "unavailable",
        Kind::Invalid => "invalid",
        Kind::Corrupt => "corrupt",
        Kind::Full => "full",
        Kind::Internal => "internal",
    }
}

/// An error as one line of JSON on standard error.
#[derive(Serialize)]
struct ErrorDocument {
    error: Relayed,
}

fn report(error: &anyhow::Error, json: bool) {
    let told = Relayed::of(error);
    let text = format!("snapctl: {}", human::lines(&told.message));
    let line =
        if json { serde_json::to_string(&ErrorDocument { error: told }).unwrap_or(text) } else { text };
    complain(&line);
}

/// Writes a line to standard error. If that is closed, there is no other way to report it.
pub(crate) fn complain(line: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{line}");
}
