//! The pages that a resumed server touches.
//!
//! The server is resumed lazily from an image in which no two neighbours lie in one run, and without prefetch: then
//! every page that is there was asked for by the server itself. Pages that CRIU puts in place before it runs (they
//! cannot be lazy) are not counted.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};

use lazyload::{ServeOptions, criu};
use rustix::process::{Pid, Signal, kill_process};
use store::{ContentReader, Image, ImageBuilder, PAGE, SnapshotDraft};

use super::data::{Key, Memory, Server};
use crate::measure::Result;
use crate::resume::{ask, poll};

const REQUESTS: usize = 30;

/// Resumes each server from its last sleep and notes the pages that it touches.
pub(super) fn record(servers: &mut [Server], scratch: &Path) -> Result<()> {
    for server in servers {
        let Some(memory) = server.sleeps.last() else { continue };
        let directory = scratch.join(format!("trace-{}", server.name));
        let touched = wake(memory, &server.image, server.port, &directory)?;
        fs::remove_dir_all(&directory)?;
        server.touched = touched;
    }
    Ok(())
}

fn wake(memory: &Memory, captured: &Image, port: u16, directory: &Path) -> Result<[Vec<Key>; 2]> {
    let store = captured.store().clone();
    let image = scattered(memory, captured)?;
    criu::materialize(&image, &store, directory)?;
    let options = ServeOptions { prefetch: false, ..ServeOptions::default() };
    let spaces: Vec<u64> = image.spaces().iter().map(|space| space.id).collect();
    std::thread::scope(|scope| {
        let serving = scope.spawn(|| criu::serve(&store, &image, directory, directory, &options));
        poll("no socket", || directory.join("lazy-pages.socket").exists().then_some(()))?;
        let mut restore = Command::new("criu");
        restore.args(["restore", "--lazy-pages", "--tcp-close", "--log-file", "restore.log", "--images-dir"]);
        let mut parent = restore
            .arg(directory)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let looked = look(memory, &spaces, port);
        for space in &spaces {
            if let Some(process) = Pid::from_raw(*space as i32) {
                let _gone = kill_process(process, Signal::KILL);
            }
        }
        parent.wait()?;
        serving.join().map_err(|_| "serving panicked")??;
        for space in &spaces {
            poll("a process stays", || (!Path::new(&format!("/proc/{space}")).exists()).then_some(()))?;
        }
        looked
    })
}

fn look(memory: &Memory, spaces: &[u64], port: u16) -> Result<[Vec<Key>; 2]> {
    let mut sets = [Vec::new(), Vec::new()];
    poll("no reply", || ask(port))?;
    sets[0] = present(memory, spaces)?;
    for _ in 1..REQUESTS {
        poll("no reply", || ask(port))?;
    }
    sets[1] = present(memory, spaces)?;
    Ok(sets)
}

/// The same memory, in which every run is one page: every second page is taken from a parent.
fn scattered(memory: &Memory, captured: &Image) -> Result<Image> {
    let store = captured.store();
    let mut parent: Option<Image> = None;
    for step in [2, 1] {
        let mut writer = store.writer("tune")?;
        let mut builder = ImageBuilder::new(&mut writer, captured.kind(), parent.as_ref());
        let mut open = None;
        for (index, (space, page)) in memory.keys.iter().enumerate().step_by(step) {
            if open != Some(*space) {
                let found = captured.spaces().iter().find(|found| found.id == *space);
                let len = found.map_or(0, |found| found.len_bytes);
                builder.begin_space(*space, len)?;
                open = Some(*space);
            }
            builder.page(*page, memory.page(index).try_into()?)?;
        }
        for (name, content) in captured.blobs() {
            let bytes = read_whole(&store.content(content)?)?;
            builder.blob(name, &mut bytes.as_slice())?;
        }
        let (image, _) = builder.finish()?;
        writer.commit("tune", SnapshotDraft { image: Some(image), ..SnapshotDraft::default() })?;
        parent = Some(store.image(&image)?);
    }
    parent.ok_or_else(|| "no image".into())
}

fn read_whole(content: &ContentReader) -> Result<Vec<u8>> {
    let mut bytes = vec![0; content.len_bytes() as usize];
    let mut done = 0;
    while done < bytes.len() {
        done += content.read_at(done as u64, &mut bytes[done..])?;
    }
    Ok(bytes)
}

/// Pages that are there, of mappings that are still served.
fn present(memory: &Memory, spaces: &[u64]) -> Result<Vec<Key>> {
    let mut found = Vec::new();
    for space in spaces {
        let mut text = String::new();
        File::open(format!("/proc/{space}/smaps"))?.read_to_string(&mut text)?;
        let table = File::open(format!("/proc/{space}/pagemap"))?;
        let mut range = None;
        for line in text.lines() {
            let first = line.split(' ').next().unwrap_or_default();
            if let Some((start, end)) = first.split_once('-').filter(|_| !first.contains(':')) {
                let parse = |text| u64::from_str_radix(text, 16).map(|address| address / PAGE as u64);
                range = Some(parse(start)?..parse(end)?);
            } else if line.starts_with("VmFlags:") && line.split(' ').any(|flag| flag == "um") {
                let Some(range) = range.clone() else { continue };
                let from = memory.keys.partition_point(|key| *key < (*space, range.start));
                let to = memory.keys.partition_point(|key| *key < (*space, range.end));
                for key in &memory.keys[from..to] {
                    let mut entry = [0; 8];
                    table.read_exact_at(&mut entry, key.1 * 8)?;
                    if entry[7] & 0x80 != 0 {
                        found.push(*key);
                    }
                }
            }
        }
    }
    found.sort_unstable();
    Ok(found)
}
