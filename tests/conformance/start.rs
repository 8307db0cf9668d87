//! How front-ends begin, end and begin again.

use front_end::codes::feature;
use front_end::{Like, Session, Wanted};

use crate::disk::{Attached, Disk, assert_ok, content, serve};

/// With and without each of the features that change how a ring is used.
#[test]
fn vu_2_11_18_blk_7_both_front_ends_start_with_any_ring_features() {
    let disk = Disk::start(&[]);
    for like in [Like::Qemu, Like::CloudHypervisor] {
        for without in [
            0,
            feature::EVENT_IDX,
            feature::INDIRECT,
            feature::EVENT_IDX | feature::INDIRECT,
        ] {
            let wanted = Wanted {
                features: feature::ALL & !without,
                ..Wanted::default()
            };
            let mut front = Attached::new(&disk.socket, like, wanted);
            assert_eq!(front.session.features & without, 0);
            assert_eq!(front.read(9, 8192), content(9 * 512, 8192));
            let bytes = [0x77; 512];
            front.write(77, &bytes);
            assert_ok(front.driver.flush().unwrap(), 1);
            assert_eq!(front.read(77, 512), bytes);
            assert_eq!(front.session.stop(1).unwrap(), [4]);
        }
    }
    assert!(disk.daemon.terminate().unwrap().success());
}

#[test]
fn vu_3_44_rings_go_on_after_a_new_connection_and_after_a_new_process() {
    let mut disk = Disk::start(&[]);
    for like in [Like::Qemu, Like::CloudHypervisor] {
        let mut front = Attached::new(&disk.socket, like, Wanted::default());
        assert_eq!(front.read(1, 512), content(512, 512));
        front.session = {
            drop(front.session);
            Session::open(&disk.socket, like, Wanted::default()).unwrap()
        };
        front
            .session
            .start(&front.memory, &[front.driver.ring()])
            .unwrap();
        assert_eq!(front.read(2, 512), content(1024, 512));

        disk.daemon.kill().unwrap();
        disk.daemon = serve(&disk.socket, &disk.image, &[]);
        front.session = Session::open(&disk.socket, like, Wanted::default()).unwrap();
        front
            .session
            .start(&front.memory, &[front.driver.ring()])
            .unwrap();
        assert_eq!(front.read(3, 512), content(1536, 512));
    }
}
