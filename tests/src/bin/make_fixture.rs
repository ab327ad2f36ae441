//! Writes a golden store of this build's format: `make_fixture DIRECTORY`, or `make_fixture DIRECTORY domains` for the
//! one with domains. Used once for each version of the format; what it wrote is kept in tests/fixtures forever.

fn main() -> store::Result<()> {
    let mut arguments = std::env::args_os().skip(1);
    let directory = arguments.next().expect("usage: make_fixture DIRECTORY [domains]");
    let state = tempfile::tempdir().expect("a scratch directory");
    match arguments.next() {
        Some(_) => tests::golden_domains::make(directory.as_ref(), state.path()),
        None => tests::golden::make(directory.as_ref(), state.path()),
    }
}
