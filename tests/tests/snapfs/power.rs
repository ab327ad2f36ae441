//! A real power cut under an upper: data that fsync confirmed is there at the next mount, complete and under its name.

use crate::HELPER;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use tests::power_disk::PowerDisk;
use tests::snapfs_mount::World;

const ROUNDS: u8 = 10;
/// Where SEMANTICS.md says that the journal's header has its boot id and, after it, its checksum.
const BOOT_ID: std::ops::Range<usize> = 64..80;

/// Makes the journal one of another boot: the file system was cut off, the machine was not.
fn set_rebooted(upper: &Path) {
    let journal = File::options().read(true).write(true).open(upper.join("journal")).unwrap();
    let mut header = [0; 88];
    journal.read_exact_at(&mut header, 0).unwrap();
    header[BOOT_ID].fill(7);
    let sum = blake3::hash(&header[..BOOT_ID.end]);
    header[BOOT_ID.end..].copy_from_slice(&sum.as_bytes()[..8]);
    journal.write_all_at(&header, 0).unwrap();
}

fn write_synced(path: &Path, bytes: &[u8]) {
    let mut file = File::create(path).unwrap();
    file.write_all(bytes).unwrap();
    file.sync_all().unwrap();
}

#[test]
fn what_was_synced_is_there_after_a_power_cut() {
    let world = World::new(HELPER);
    let source = world.make("source");
    fs::write(source.join("base"), vec![0xb; 300_000]).unwrap();
    world.backup(&source, "base");
    let mut expected_base = vec![0xb; 300_000];
    let disk = PowerDisk::new();
    let upper = disk.mounted.join("upper");
    for round in 1..=ROUNDS {
        let served = world.mount("base", "mnt", upper.to_str().unwrap(), &[]);
        let base = File::options().write(true).open(served.path("base")).unwrap();
        let at = usize::from(round) * 20_000;
        base.write_all_at(&[round; 9000], at as u64).unwrap();
        base.sync_all().unwrap();
        expected_base[at..at + 9000].fill(round);
        write_synced(&served.path(&format!("new-{round}")), &vec![round; 50_000]);
        fs::rename(served.path(&format!("new-{round}")), served.path(&format!("kept-{round}"))).unwrap();
        File::open(&served.mountpoint).unwrap().sync_all().unwrap();
        // Only bytes: the first write puts them where the upper held none, the second where it does.
        let log = File::options().write(true).create(true).truncate(false).open(served.path("log")).unwrap();
        for piece in [round, round + 100] {
            log.write_all_at(&[piece; 4096], u64::from(round) * 4096).unwrap();
            log.sync_data().unwrap();
        }
        // This was never synced: it is there completely or not at all.
        base.write_all_at(&[0xee; 9000], 0).unwrap();
        disk.cut_power();
        drop((base, log));
        served.kill();
        disk.unmount();
        disk.mount();
        set_rebooted(&upper);

        let served = world.mount("base", "mnt", upper.to_str().unwrap(), &[]);
        for kept in 1..=round {
            let bytes = fs::read(served.path(&format!("kept-{kept}"))).unwrap();
            assert!(bytes == vec![kept; 50_000], "round {round}: file {kept}");
            let log = fs::read(served.path("log")).unwrap();
            let piece = &log[usize::from(kept) * 4096..][..4096];
            assert!(
                piece == [kept + 100; 4096],
                "round {round}: what was written to the log in round {kept}"
            );
        }
        let found = fs::read(served.path("base")).unwrap();
        assert!(found[9000..] == expected_base[9000..], "round {round}: the file of the snapshot");
        assert!(
            found[..9000] == [0xb; 9000] || found[..9000] == [0xee; 9000],
            "round {round}: a write by half"
        );
        served.unmount();
    }
}
