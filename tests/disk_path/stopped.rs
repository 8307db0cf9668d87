//! The process is stopped for longer than the kernel waits for a lease. When
//! it goes on, the image's blocks may be others': no request may go where the
//! map says.

use std::fs::OpenOptions;

use front_end::codes::status;
use front_end::{Buffer, LIMIT, Op};
use rig::file_systems::{EXT4, Made, Mounted, XFS, sync};
use rig::files::read_direct;
use rig::image::Image;
use rig::model::{SECTOR, Value, content, holds};

use crate::disturb::Others;
use crate::served::{Guest, QUEUE_DATA, Served};

/// Bytes of the image, and of a request.
const BYTES: usize = 16 << 20;
const LENGTH: u32 = 64 << 10;
/// What the guest writes when it goes on.
const LATER: Value = 2;

fn nothing_goes_to_the_old_blocks(made: Made) {
    let Some(host) = Mounted::new(made) else {
        return;
    };
    let image = Image::written(&host, BYTES);
    let served = Served::start(&image.path, &[], &[]);
    let mut guest = Guest::attach(&served);
    served.wait_disk();
    let driver = &mut guest.drivers[0];
    let starts = (0..BYTES as u64)
        .step_by(1 << 20)
        .map(|at| at / SECTOR as u64);
    served.wait("the map to be loaded", |_| {
        let before = served.info().file_operations;
        for sector in starts.clone() {
            driver.read(sector, QUEUE_DATA, LENGTH).unwrap();
        }
        served.info().file_operations == before
    });

    served.daemon.signal(libc::SIGSTOP).unwrap();
    // Waits until the kernel takes the lease away.
    let foreign = OpenOptions::new()
        .write(true)
        .truncate(true)
        .open(&image.path)
        .unwrap();
    foreign.set_len(BYTES as u64).unwrap();
    sync(&host);
    let mut others = Others::default();
    let mut count = 0;
    while others
        .write(host.path(&format!("new-{count}")), 4 << 20)
        .is_some()
    {
        count += 1;
    }
    std::fs::remove_file(host.path("new-0")).unwrap();
    others.forget(&host.path("new-0"));
    sync(&host);

    // All at once, so that the first turn of the worker finds them.
    let mut data = QUEUE_DATA;
    for sector in starts.clone() {
        let first = usize::try_from(sector).unwrap();
        let bytes = content(LATER, first..first + LENGTH as usize / SECTOR);
        guest.memory.write(data, &bytes).unwrap();
        let buffer = Buffer::readable(data, LENGTH);
        assert!(driver.submit(Op::Write, sector, &[buffer], 0));
        data += u64::from(LENGTH);
    }
    driver.publish().unwrap();
    served.daemon.signal(libc::SIGCONT).unwrap();
    for _ in starts.clone() {
        assert_eq!(driver.wait(LIMIT).unwrap().status, status::OK);
    }
    assert_eq!(driver.flush().unwrap().status, status::OK);
    drop(foreign);
    assert_eq!(others.spoilt(), Vec::<String>::new());
    let bytes = read_direct(&image.path);
    for sector in starts {
        let first = usize::try_from(sector).unwrap();
        for sector in first..first + LENGTH as usize / SECTOR {
            assert!(holds(LATER, sector, &bytes[sector * SECTOR..][..SECTOR]));
        }
    }
    // And once the image is its own again, it goes back.
    assert!(served.wait_disk().entries > 1);
}

#[test]
fn after_a_long_stop_nothing_goes_to_the_old_blocks_on_ext4() {
    nothing_goes_to_the_old_blocks(EXT4);
}

#[test]
fn after_a_long_stop_nothing_goes_to_the_old_blocks_on_xfs() {
    nothing_goes_to_the_old_blocks(XFS);
}
