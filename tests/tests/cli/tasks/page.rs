//! docs/TASKS.md as steps: for each section the files that it names and the commands that it shows. Pure.
//!
//! A block that is neither `console` nor `toml`, or that holds a line of another form, is an error: no block is passed
//! over.

/// A section of the page.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Task {
    pub title: String,
    pub steps: Vec<Step>,
}

/// A block's file, or one command.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    File { path: String, text: String },
    Command(Command),
}

/// A command with its end as the page has it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Command {
    /// Number of its line in the page, from 1.
    pub line: usize,
    /// The prompt's word: empty for the host, `other` for the second one.
    pub host: String,
    pub text: String,
    pub exit_code: i32,
    /// Lines that its output has, in this order; `...` stands for any text.
    pub answer: Vec<String>,
}

/// Reads the page.
pub(super) fn parse(page: &str) -> Result<Vec<Task>, String> {
    let mut tasks: Vec<Task> = Vec::new();
    let mut lines = page.lines().zip(1..);
    while let Some((line, number)) = lines.next() {
        if let Some(title) = line.strip_prefix("## ") {
            tasks.push(Task { title: title.to_owned(), steps: Vec::new() });
        } else if let Some(language) = line.strip_prefix("```") {
            let block: Vec<_> = lines.by_ref().take_while(|(line, _)| *line != "```").collect();
            let task = tasks.last_mut().ok_or(format!("line {number}: a block before the first task"))?;
            match language {
                "console" => console(&block, &mut task.steps)?,
                "toml" => task.steps.push(file(&block)?),
                _ => {
                    return Err(format!("line {number}: a block of {language:?} is not checked by anything"));
                }
            }
        }
    }
    Ok(tasks)
}

fn file(block: &[(&str, usize)]) -> Result<Step, String> {
    let (first, number) = block.first().ok_or("an empty block")?;
    let path = first.strip_prefix("# /").ok_or(format!("line {number}: no path of a file"))?;
    let text = block.iter().map(|(line, _)| format!("{line}\n")).collect();
    Ok(Step::File { path: format!("/{path}"), text })
}

fn console(block: &[(&str, usize)], steps: &mut Vec<Step>) -> Result<(), String> {
    let first = steps.len();
    for (line, number) in block {
        let typed = ["", "other"].iter().find_map(|host| {
            let text = line.strip_prefix(host)?.strip_prefix("$ ")?;
            Some((*host, text))
        });
        if let Some((host, text)) = typed {
            let (text, exit_code) = match text.split_once("# exit ") {
                Some((text, code)) => (text.trim_end(), code.parse().map_err(|_| format!("line {number}"))?),
                None => (text, 0),
            };
            let (host, text) = (host.to_owned(), text.to_owned());
            steps.push(Step::Command(Command { line: *number, host, text, exit_code, answer: Vec::new() }));
        } else if let Some(Step::Command(command)) = steps[first..].last_mut() {
            if command.text.ends_with('\\') {
                command.text = format!("{}\n{line}", command.text);
            } else {
                command.answer.push((*line).to_owned());
            }
        } else {
            return Err(format!("line {number}: output without a command"));
        }
    }
    Ok(())
}

/// The first line of `expected` missing from `output`, behind those before it.
pub(super) fn missing<'a>(expected: &'a [String], output: &str) -> Option<&'a String> {
    let mut lines = output.lines();
    expected.iter().find(|wanted| !lines.any(|line| matches(wanted, line)))
}

/// Whether a line is as wanted, `...` standing for any text.
fn matches(wanted: &str, line: &str) -> bool {
    let mut parts = wanted.split("...");
    let Some(mut rest) = parts.next().and_then(|first| line.strip_prefix(first)) else { return false };
    let mut parts = parts.peekable();
    if parts.peek().is_none() {
        return rest.is_empty();
    }
    while let Some(part) = parts.next() {
        if parts.peek().is_none() {
            return rest.ends_with(part);
        }
        let Some(place) = rest.find(part) else { return false };
        rest = &rest[place + part.len()..];
    }
    true
}

#[cfg(test)]
mod tests {
    use super::{Command, Step, matches, missing, parse};

    #[test]
    fn files_commands_exit_codes_and_answers_are_read() {
        let page = "# Tasks\n## One\ntext\n```toml\n# /etc/x\na = 1\n```\n```console\n$ snapctl a   # exit 1\nout\n\
                    other$ b \\\n c\n```\n";
        let tasks = parse(page).unwrap();
        let command = |line, host: &str, text: &str, exit_code, answer: &[&str]| {
            let answer = answer.iter().map(|line| (*line).to_owned()).collect();
            Step::Command(Command { line, host: host.into(), text: text.into(), exit_code, answer })
        };
        let file = Step::File { path: "/etc/x".into(), text: "# /etc/x\na = 1\n".into() };
        assert_eq!(
            tasks[0].steps,
            [file, command(9, "", "snapctl a", 1, &["out"]), command(11, "other", "b \\\n c", 0, &[])]
        );
        assert_eq!((tasks.len(), tasks[0].title.as_str()), (1, "One"));
    }

    #[test]
    fn a_block_that_nothing_checks_is_refused() {
        for block in
            ["```sh\nx\n```", "```\nx\n```", "```console\nx\n```", "```toml\na = 1\n```", "```toml\n```"]
        {
            assert!(parse(&format!("## One\n{block}\n")).is_err(), "{block}");
        }
        assert!(parse("```console\n$ x\n```\n").is_err(), "before the first task");
        assert!(parse("## One\n```console\n$ x  # exit one\n```\n").is_err());
    }

    #[test]
    fn an_answer_is_found_in_order_and_with_gaps() {
        for (wanted, line) in
            [("a", "a"), ("a ...", "a b"), ("... b", "a b"), ("a...c...e", "abcde"), ("...", "")]
        {
            assert!(matches(wanted, line), "{wanted:?} {line:?}");
        }
        for (wanted, line) in
            [("a", "ab"), ("a ...", "b a "), ("... b", "b c"), ("a...c", "ab"), ("a...b...a", "aba ")]
        {
            assert!(!matches(wanted, line), "{wanted:?} {line:?}");
        }
        let expected = ["one".to_owned(), "two".to_owned()];
        assert_eq!(missing(&expected, "zero\none\ntwo\n"), None);
        assert_eq!(missing(&expected, "two\none\n"), Some(&expected[1]));
    }
}
