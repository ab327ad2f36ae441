//! The one error type of the crate.
//!
//! Rules: a [`Kind`] answers "what should the caller do now"; the text says what happened, to which object, why, and
//! the user's next step. An error carries its cause and never hides it. Libraries return errors and never print.

use std::fmt;

/// Result of every fallible call of the store.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Tells an absent object from a failure.
pub trait OptionalExt<T> {
    /// `None` for an object that is not there.
    ///
    /// # Errors
    /// Every error but `NotFound`.
    fn optional(self) -> Result<Option<T>>;
}

impl<T> OptionalExt<T> for Result<T> {
    fn optional(self) -> Result<Option<T>> {
        match self {
            Err(error) if error.kind() == Kind::NotFound => Ok(None),
            outcome => outcome.map(Some),
        }
    }
}

/// What the caller should do about an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// The named thing is not there.
    NotFound,
    /// Another process holds it or changed it first.
    Conflict,
    /// This writer was declared dead and may not go on.
    Fenced,
    /// The tier or the kernel did not answer; try again later.
    Unavailable,
    /// The request itself is wrong.
    Invalid,
    /// Stored or supplied bytes are damaged or malformed.
    Corrupt,
    /// No space is left.
    Full,
    /// A promise of this crate was broken: a bug.
    Internal,
}

type Source = Box<dyn std::error::Error + Send + Sync + 'static>;

/// What happened, to which object, why, and what to do next.
pub struct Error(Box<Inner>);

struct Inner {
    kind: Kind,
    what: String,
    object: Option<String>,
    advice: Option<String>,
    source: Option<Source>,
}

impl Error {
    /// A new error: `what` happened, without a full stop.
    pub fn new(kind: Kind, what: impl Into<String>) -> Self {
        Self(Box::new(Inner { kind, what: what.into(), object: None, advice: None, source: None }))
    }

    /// An error of the data: a parser met bytes that break the format.
    pub fn corrupt(what: impl Into<String>) -> Self {
        Self::new(Kind::Corrupt, what)
    }

    /// An error of the caller.
    pub fn invalid(what: impl Into<String>) -> Self {
        Self::new(Kind::Invalid, what)
    }

    /// Names the object (path, key, id) that the error concerns; the first name given stays.
    pub fn object(mut self, object: impl fmt::Display) -> Self {
        self.0.object.get_or_insert_with(|| object.to_string());
        self
    }

    /// Advice to the user.
    pub fn advice(mut self, advice: impl Into<String>) -> Self {
        self.0.advice = Some(advice.into());
        self
    }

    /// Further advice, or something else the user has to know.
    pub fn further_advice(mut self, advice: &str) -> Self {
        self.0.advice = Some(match self.0.advice.take() {
            Some(first) => format!("{first}; {advice}"),
            None => advice.to_owned(),
        });
        self
    }

    /// Attaches the cause.
    pub fn caused_by(mut self, source: impl std::error::Error + Send + Sync + 'static) -> Self {
        self.0.source = Some(Box::new(source));
        self
    }

    /// An error of the operating system, its kind derived from the error number.
    pub fn io(what: impl Into<String>, object: impl fmt::Display, source: std::io::Error) -> Self {
        use std::io::ErrorKind as Io;
        let (kind, advice) = match source.kind() {
            Io::NotFound => (Kind::NotFound, None),
            Io::AlreadyExists => (Kind::Conflict, None),
            Io::StorageFull | Io::QuotaExceeded => {
                (Kind::Full, Some("free some space, or run `snapctl gc`; nothing already stored was changed"))
            }
            Io::ReadOnlyFilesystem => (Kind::Invalid, Some("the file system is mounted read-only")),
            Io::PermissionDenied => {
                (Kind::Invalid, Some("check the owner and mode of the path, or run as root"))
            }
            Io::IsADirectory | Io::NotADirectory | Io::InvalidInput | Io::InvalidFilename => {
                (Kind::Invalid, None)
            }
            Io::UnexpectedEof => (Kind::Corrupt, None),
            _ => (Kind::Unavailable, None),
        };
        let error = Self::new(kind, what).object(object).caused_by(source);
        match advice {
            Some(advice) => error.advice(advice),
            None => error,
        }
    }

    /// The kind, which determines the caller's action.
    pub fn kind(&self) -> Kind {
        self.0.kind
    }

    /// The operating system's error number of the cause, where there is one.
    pub fn raw_os_error(&self) -> Option<i32> {
        self.0.source.as_ref()?.downcast_ref::<std::io::Error>()?.raw_os_error()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.what)?;
        if let Some(object) = &self.0.object {
            write!(f, ": {object}")?;
        }
        if let Some(source) = &self.0.source {
            write!(f, ": {source}")?;
        }
        if let Some(advice) = &self.0.advice {
            write!(f, "; {advice}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}({self})", self.0.kind)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        // Display already shows the cause, so the chain goes on below it.
        self.0.source.as_ref().and_then(|source| source.source())
    }
}
