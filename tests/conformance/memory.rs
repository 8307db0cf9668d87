//! Guest memory that comes, goes and lies in several regions.

use front_end::codes::status;
use front_end::{Buffer, Like, Op, Place, Region, Wanted};

use crate::disk::{Attached, Disk, MEMORY, assert_ok, content};

/// A second region, adjacent in the guest only.
fn more() -> Place {
    Place {
        guest: MEMORY,
        user: 0x1000_0000_0000,
        size: 1 << 20,
    }
}

#[test]
fn ring_11_vu_21_buffers_cross_into_memory_that_is_added_while_the_ring_runs() {
    let disk = Disk::start(&[]);
    for like in [Like::Qemu, Like::CloudHypervisor] {
        let mut front = Attached::new(&disk.socket, like, Wanted::default());
        let across = [Buffer::writable(MEMORY - 512, 1024)];
        let done = front.driver.run(Op::Read, 8, &across).unwrap();
        assert_eq!(done.status, status::IOERR, "there is no memory yet");

        front.memory.add(Region::new(more()).unwrap());
        front.session.share(&front.memory).unwrap();
        assert_ok(front.driver.run(Op::Read, 8, &across).unwrap(), 1025);
        let read = front.memory.read(MEMORY - 512, 1024).unwrap();
        assert_eq!(read, content(8 * 512, 1024));

        front.memory.remove(MEMORY).unwrap();
        front.session.share(&front.memory).unwrap();
        let done = front.driver.run(Op::Read, 8, &across).unwrap();
        assert_eq!(done.status, status::IOERR, "the memory has gone");
    }
}

/// The same connection, as a guest that reboots.
#[test]
fn vu_14_29_rings_stop_and_start_again_with_the_same_memory() {
    let disk = Disk::start(&[]);
    for like in [Like::Qemu, Like::CloudHypervisor] {
        let mut front = Attached::new(&disk.socket, like, Wanted::default());
        for round in 1..4_u16 {
            assert_eq!(
                front.read(round.into(), 512),
                content(usize::from(round) * 512, 512)
            );
            assert_eq!(front.session.stop(1).unwrap(), [u32::from(round)]);
            let rings = [front.driver.ring()];
            front.session.start(&front.memory, &rings).unwrap();
        }
    }
}
