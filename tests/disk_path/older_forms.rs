//! ext4's older forms under the disk path: files in lists of blocks, as ext2
//! and ext3 have them, and no journal.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::process::Command;
use std::sync::atomic::AtomicBool;

use rig::file_systems::{Made, Mounted, OLDER_EXT};
use rig::files::{open_direct, read_direct};
use rig::image::{BYTES, FIRST, SECTORS};
use rig::model::{Model, SECTOR, Value, content, holds};
use rig::program::run;

use crate::client::{Client, owner};
use crate::disturb::{self, Stopper};
use crate::served::{Guest, Served};

/// Bytes of the image that are written at first: of so many, the first half.
const STRIPE: usize = 2 << 20;
/// How often whoever else uses the host's files is let loose.
const ROUNDS: u64 = 3;

fn first(sector: usize) -> Value {
    if sector * SECTOR % STRIPE < STRIPE / 2 {
        FIRST
    } else {
        0
    }
}

/// An image of data and holes, and what its sectors hold.
fn image(file: &File) -> Vec<Value> {
    file.set_len(BYTES as u64).unwrap();
    let values: Vec<_> = (0..SECTORS).map(first).collect();
    for (sector, &value) in values.iter().enumerate().filter(|(_, value)| **value != 0) {
        let at = (sector * SECTOR) as u64;
        file.write_all_at(&content(value, sector..sector + 1), at)
            .unwrap();
    }
    file.sync_all().unwrap();
    values
}

/// Blocks next to the image come and go. Not every form can allocate without a write.
fn churn(host: &Mounted) {
    for round in 0..6 {
        let path = host.path(&format!("churn-{}", round % 3));
        let _ = std::fs::remove_file(&path);
        std::fs::write(path, vec![7; 3 << 20]).unwrap();
    }
    for round in 0..3 {
        std::fs::remove_file(host.path(&format!("churn-{round}"))).unwrap();
    }
    run(Command::new("fstrim").arg(host.root())).unwrap();
}

/// Random requests by the disk, while the image is read and other files come and go.
fn nothing_goes_wrong(made: Made) {
    let Some(host) = Mounted::new(made) else {
        return;
    };
    let path = host.path("image");
    let values = image(&host.create("image"));
    let served = Served::start(&path, &[], &[]);
    let Guest {
        session,
        memory,
        drivers,
    } = Guest::attach(&served);
    let (stop, full) = (AtomicBool::new(false), AtomicBool::new(false));
    let mut clients: Vec<_> = drivers
        .into_iter()
        .enumerate()
        .map(|queue| Client::new(queue, &memory, Model::new(&values), SECTORS, &full))
        .collect();
    std::thread::scope(|scope| {
        for client in &mut clients {
            scope.spawn(|| client.run(&stop));
        }
        let _stopper = Stopper(&stop);
        for round in 0..ROUNDS {
            let before = served.wait_entries(round);
            served.wait("requests by the disk", |now| {
                now.disk_operations > before.disk_operations + 500
            });
            drop(open_direct(&path));
            drop(disturb::cat(&path));
            churn(&host);
            disturb::remount(&host);
        }
        served.wait_disk();
    });
    let mut wrong = Vec::new();
    for client in &mut clients {
        client.flush();
        wrong.append(&mut client.wrong);
    }
    let info = served.info();
    drop(session);
    assert!(served.daemon.terminate().unwrap().success());
    let bytes = read_direct(&path);
    for (sector, bytes) in bytes.chunks_exact(SECTOR).enumerate() {
        let may = clients[owner(sector)].model.now(sector);
        if !may.iter().any(|&value| holds(value, sector, bytes)) {
            wrong.push(format!("sector {sector} is not {may:?}"));
        }
    }
    wrong.truncate(5);
    assert!(wrong.is_empty(), "{}: {wrong:#?}", made.name);
    assert!(info.entries > ROUNDS, "{}: {info:?}", made.name);
    run(Command::new("umount").arg(host.root())).unwrap();
    disturb::check(true, host.device()).unwrap();
    run(Command::new("mount").arg(host.device()).arg(host.root())).unwrap();
}

#[test]
fn nothing_goes_wrong_on_older_forms_of_ext4() {
    OLDER_EXT.into_iter().for_each(nothing_goes_wrong);
}
