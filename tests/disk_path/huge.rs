//! Sparse images up to what XFS allows: they start at once, and memory is for
//! what is used.

use front_end::codes::status;
use front_end::{Like, Session, Wanted};

use rig::file_systems::{Mounted, XFS};

use crate::served::Served;

const MEMORY: u64 = 2 << 20;
const DATA: u64 = 1 << 20;

/// Kibibytes of its own that the process has in memory.
fn own_memory(served: &Served) -> u64 {
    let path = format!("/proc/{}/status", served.daemon.pid());
    let text = std::fs::read_to_string(path).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    line.unwrap()
        .trim()
        .trim_end_matches(" kB")
        .parse()
        .unwrap()
}

#[test]
fn sparse_images_of_any_size_are_served_in_little_memory() {
    let Some(host) = Mounted::new(XFS) else {
        return;
    };
    let path = host.path("huge");
    let longest = i64::MAX as u64;
    for (bytes, budget) in [
        (1 << 40, "64M"),
        (16 << 40, "64M"),
        (256 << 40, "64M"),
        (256 << 40, "2G"),
        (60 << 50, "64M"),
        (1 << 60, "64M"),
        (longest - 4095, "64M"),
        (longest, "64M"),
    ] {
        let file = std::fs::File::create(&path).unwrap();
        file.set_len(bytes).unwrap();
        drop(file);
        let served = Served::start(&path, &["--map-budget", budget], &[]);
        let mut session = Session::open(&served.socket, Like::Qemu, Wanted::default()).unwrap();
        let config = session.connection.get_config(0, 8).unwrap();
        let sectors = u64::from_le_bytes(config.try_into().unwrap());
        assert_eq!(sectors, bytes / 512, "{bytes}");
        let (memory, mut driver) = session.start_one(MEMORY, 64).unwrap();
        let info = served.info();
        let fits = bytes <= 16 << 40 || budget == "2G";
        assert_eq!(
            info.reason.contains("of --map-budget: give more"),
            !fits,
            "{bytes}: {}",
            info.reason
        );
        if fits {
            served.wait_disk();
        }
        for sector in [0, sectors / 2, sectors - 8] {
            memory.write(DATA, &[0x5a; 4096]).unwrap();
            assert_eq!(driver.write(sector, DATA, 4096).unwrap().status, status::OK);
            memory.write(DATA, &[0; 4096]).unwrap();
            assert_eq!(driver.read(sector, DATA, 4096).unwrap().status, status::OK);
            assert_eq!(memory.read(DATA, 4096).unwrap(), [0x5a; 4096]);
        }
        let own = own_memory(&served);
        eprintln!("{bytes} bytes, {budget}: {own} KiB");
        assert!(own < 8 << 10, "{bytes}: {own} KiB");
        drop(session);
        assert!(served.daemon.terminate().unwrap().success());
    }
}
