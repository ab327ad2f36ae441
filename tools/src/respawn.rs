//! Starts this program once more, with the same arguments, in another role: for a mount in the background and the
//! handler of a resume. The role is passed in the environment, so that it works with any command line.

use std::process::Command;

use store::{Error, Result};

const VARIABLE: &str = "TORPOR_ROLE";

/// Role of a process of this program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// Started by the user.
    Typed,
    /// Serves a mount in the background.
    Background,
    /// Serves faults, below its supervisor.
    Handler,
}

impl Role {
    /// The role of this process.
    pub(crate) fn current() -> Role {
        match std::env::var(VARIABLE).as_deref() {
            Ok("background") => Role::Background,
            Ok("handler") => Role::Handler,
            _ => Role::Typed,
        }
    }
}

/// The command that starts this program once more in `role`.
///
/// # Errors
/// When the path of this program cannot be determined.
pub(crate) fn command(role: Role) -> Result<Command> {
    let program = std::env::current_exe()
        .map_err(|source| Error::io("cannot find this program again", "/proc/self/exe", source))?;
    let word = match role {
        Role::Typed => "typed",
        Role::Background => "background",
        Role::Handler => "handler",
    };
    let mut command = Command::new(program);
    command.args(std::env::args_os().skip(1)).env(VARIABLE, word);
    Ok(command)
}

/// The command that starts another program, without the role.
pub(crate) fn foreign(program: &str) -> Command {
    let mut command = Command::new(program);
    command.env_remove(VARIABLE);
    command
}
