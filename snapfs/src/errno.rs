//! The one table from errors of the store to the numbers that an application sees.
//!
//! Errors of the store are logged here, once: the kernel passes only a number to the application.

pub(crate) use rustix::io::Errno;

/// The result of a file-system operation: a value, or the error number for the application.
pub(crate) type Answer<T> = Result<T, Errno>;

/// The error number for an error of the store, which is logged.
pub(crate) fn from_store(error: store::Error) -> Errno {
    use store::Kind;
    let errno = match error.kind() {
        Kind::Full => Errno::NOSPC,
        Kind::Invalid => Errno::INVAL,
        Kind::Conflict => Errno::BUSY,
        // A missing piece of the base is damage for the application that reads the file, not an absent name.
        Kind::NotFound | Kind::Fenced | Kind::Unavailable | Kind::Corrupt | Kind::Internal => Errno::IO,
    };
    tracing::error!(%error, ?errno, "the store could not serve the mount");
    errno
}

/// The error number of a failed system call.
pub(crate) fn from_io(error: &std::io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}
