//! Writes the golden store of this build's format: `make_fixture DIRECTORY`. Used once for each version of the format; what
//! it wrote is kept in tests/fixtures for ever.

fn main() -> store::Result<()> {
    let directory = std::env::args_os().nth(1).expect("usage: make_fixture DIRECTORY");
    let state = tempfile::tempdir().expect("a scratch directory");
    tests::golden::make(directory.as_ref(), state.path())
}
