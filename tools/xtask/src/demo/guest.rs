//! A KVM guest that stamps its pages is saved, captured, and resumed over userfaultfd; there it checks every stamp.

use std::process::Stdio;
use std::time::{Duration, Instant};

use super::scene::{Answer, Scene, megabytes};
use super::server::poll;
use crate::shell::{Context, Failure, Result, output, run_quiet};

/// 128 MiB of stamped pages.
const PAGES: &str = "32768";

pub(super) fn save_and_resume(scene: &mut Scene) -> Result<()> {
    let [memory, state, socket, loaded] =
        ["guest.memory", "guest.state", "guest.socket", "guest.loaded"].map(|name| scene.path(name));
    let start = Instant::now();
    let mut save = scene.program("vmm");
    save.arg("save").arg("--memory").arg(&memory).arg("--state").arg(&state).args(["--pages", PAGES]);
    run_quiet(&mut save)?;
    scene.happened("guest", format!("boots in KVM, stamps {PAGES} pages, is saved"), start.elapsed());

    let mut capture: Vec<&std::ffi::OsStr> = vec!["capture".as_ref(), "guest".as_ref()];
    capture.extend(["--firecracker".as_ref(), memory.as_os_str(), "--vmstate".as_ref(), state.as_os_str()]);
    let (answer, elapsed) = scene.ask(capture)?;
    let (bytes, stored) = (answer.number("bytes")?, answer.number("stored_bytes")?);
    let what = format!("the guest's {}, {} stored", megabytes(bytes), megabytes(stored));
    scene.happened("capture", what, elapsed);

    let start = Instant::now();
    let mut serve = scene.snapctl(["resume", "guest", "--uffd-socket"]);
    serve.arg(&socket).arg("--vmstate").arg(&loaded).stdin(Stdio::null()).stdout(Stdio::null());
    let mut serve = serve.spawn().context(|| "cannot start snapctl".into())?;
    scene.note_process(serve.id())?;
    poll("snapctl does not listen for the guest", || socket.exists().then_some(()))?;
    let mut resume = scene.program("vmm");
    resume.arg("resume").arg("--socket").arg(&socket).arg("--state").arg(&loaded);
    let checked = Answer(output(&mut resume)?);
    let elapsed = start.elapsed();
    let status = serve.wait().context(|| "cannot wait for snapctl".into())?;
    if !status.success() {
        return Err(Failure::new(format!("snapctl resume failed ({status})")));
    }
    let first = Duration::from_secs_f64(checked.decimal("first_page_seconds")?);
    scene.happened("resume guest", "snapctl resume, to the guest's first right page", first);
    scene.happened(
        "guest",
        format!("has checked every stamp of {} pages", checked.number("pages")?),
        elapsed,
    );
    Ok(())
}
