//! Standard output: text for people, or JSON for programs. Commands pass values; this decides how they look.
//!
//! With `--json` every line of standard output is one JSON document: one for most commands, one for each item where the
//! answer is a list (`snapshots`, `ls`, `diff`), so that no list has to fit into memory. `cat` and `completions` write
//! their data as it is, with any flags. Sizes are in bytes, times RFC 3339 in UTC, ids in hex, fields in snake_case;
//! fields may be added, none changes its meaning.

use std::io::{self, BufWriter, Stdout, Write};

use serde::Serialize;
use store::Error;

use crate::exit::OutputClosed;

/// A value that can be shown both ways.
pub(crate) trait Show: Serialize {
    /// Writes it for people.
    fn show(&self, out: &mut dyn Write) -> io::Result<()>;
}

/// Standard output, buffered; flushed by `finish`.
pub(crate) struct Output {
    stdout: BufWriter<Stdout>,
    json: bool,
    quiet: bool,
}

impl Output {
    pub(crate) fn new(json: bool, quiet: bool) -> Output {
        Output { stdout: BufWriter::with_capacity(1 << 16, io::stdout()), json, quiet }
    }

    pub(crate) fn is_json(&self) -> bool {
        self.json
    }

    /// The requested answer: always written.
    pub(crate) fn answer(&mut self, value: &impl Show) -> anyhow::Result<()> {
        let written = if self.json {
            serde_json::to_writer(&mut self.stdout, value)
                .map_err(io::Error::from)
                .and_then(|()| self.stdout.write_all(b"\n"))
        } else {
            value.show(&mut self.stdout)
        };
        written.map_err(output_error)
    }

    /// The report of a command's action: left out when quiet, but not from JSON.
    pub(crate) fn report(&mut self, value: &impl Show) -> anyhow::Result<()> {
        if self.quiet && !self.json { Ok(()) } else { self.answer(value) }
    }

    /// Raw data.
    pub(crate) fn data(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        self.stdout.write_all(bytes).map_err(output_error)
    }

    /// For reports while the command goes on.
    pub(crate) fn announcer(&self) -> Announcer {
        Announcer { json: self.json, quiet: self.quiet }
    }

    /// Flushes everything; an error shows that a reader did not get all of it.
    pub(crate) fn finish(&mut self) -> anyhow::Result<()> {
        self.stdout.flush().map_err(output_error)
    }
}

/// Lets another thread report at once, while the command goes on.
pub(crate) struct Announcer {
    json: bool,
    quiet: bool,
}

impl Announcer {
    /// Reports and flushes. A closed output must not stop the command.
    pub(crate) fn report(&self, value: &impl Show) {
        let mut output = Output::new(self.json, self.quiet);
        if let Err(error) = output.report(value).and_then(|()| output.finish()) {
            tracing::warn!(%error, "an announcement was not heard");
        }
    }
}

fn output_error(source: io::Error) -> anyhow::Error {
    if source.kind() == io::ErrorKind::BrokenPipe {
        return OutputClosed.into();
    }
    let error = Error::io("cannot write the answer", "standard output", source);
    error.advice("what the command did before that is done").into()
}

/// Rows under headings, columns as wide as needed. A column marked right is aligned right.
pub(crate) struct Table {
    headings: Vec<(&'static str, bool)>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// Headings; one that begins with `>` is aligned right.
    pub(crate) fn new(headings: &[&'static str]) -> Table {
        let headings = headings.iter().map(|heading| match heading.strip_prefix('>') {
            Some(heading) => (heading, true),
            None => (*heading, false),
        });
        Table { headings: headings.collect(), rows: Vec::new() }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    pub(crate) fn row(&mut self, cells: Vec<String>) {
        assert_eq!(cells.len(), self.headings.len(), "a row has a cell for each heading");
        self.rows.push(cells);
    }

    pub(crate) fn show(&self, out: &mut dyn Write) -> io::Result<()> {
        let widths: Vec<usize> = (0..self.headings.len())
            .map(|column| {
                let cells = self.rows.iter().map(|row| row[column].chars().count());
                cells.chain([self.headings[column].0.len()]).max().unwrap_or(0)
            })
            .collect();
        let headings: Vec<&str> = self.headings.iter().map(|(heading, _)| *heading).collect();
        self.line(out, &headings, &widths)?;
        for row in &self.rows {
            let cells: Vec<&str> = row.iter().map(String::as_str).collect();
            self.line(out, &cells, &widths)?;
        }
        Ok(())
    }

    fn line(&self, out: &mut dyn Write, cells: &[&str], widths: &[usize]) -> io::Result<()> {
        let mut line = String::new();
        for ((cell, width), (_, right)) in cells.iter().zip(widths).zip(&self.headings) {
            let cell = if *right { format!("{cell:>width$}  ") } else { format!("{cell:<width$}  ") };
            line.push_str(&cell);
        }
        writeln!(out, "{}", line.trim_end())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let mut table = Table::new(&["ref", ">size"]);
        table.row(vec!["web".into(), "1 B".into()]);
        table.row(vec!["database".into(), "1023 B".into()]);
        let mut text = Vec::new();
        table.show(&mut text).unwrap();
        let expected = "ref         size\nweb          1 B\ndatabase  1023 B\n";
        assert_eq!(String::from_utf8(text).unwrap(), expected);
    }
}
