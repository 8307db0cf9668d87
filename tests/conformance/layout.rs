//! Requests in descriptors of any cut.

use front_end::codes::status;
use front_end::{Block, Cuts, Like, Op, Wanted, limit};

use crate::disk::{Attached, DATA, Disk, assert_ok, content};

#[test]
fn blk_9_10_descriptors_have_no_meaning_in_either_direction() {
    let disk = Disk::start(&[]);
    let mut front = Attached::new(&disk.socket, Like::Qemu, Wanted::default());
    let cuts: [(&[u32], &[u32]); 6] = [
        (&[16], &[512]),
        (&[1, 7, 8], &[1, 511]),
        (&[], &[]),
        (&[20], &[500]),
        (&[16, 100, 300], &[3, 200]),
        (&[15, 2], &[510, 2]),
    ];
    for indirect in [false, true] {
        for (number, (readable, writable)) in (0_u8..).zip(cuts) {
            let cuts = Cuts { readable, writable };
            // Nothing to read beside the header: only cuts within it.
            let header_cuts = if readable.iter().sum::<u32>() < 16 {
                readable
            } else {
                &[]
            };
            let reading = Cuts {
                readable: header_cuts,
                writable,
            };
            let block =
                Block::write(&front.memory, DATA, (Op::Read, 3), &[], 512, reading).unwrap();
            front.memory.write(block.end, &[0xee]).unwrap();
            let driver = &mut front.driver;
            driver
                .submit_chain(&block.chain, block.status, indirect, 0)
                .unwrap();
            driver.publish().unwrap();
            assert_ok(driver.wait(limit()).unwrap(), 513);
            let read = front.memory.read(block.data_in, 512).unwrap();
            assert_eq!(read, content(3 * 512, 512), "{cuts:?}");
            // Exactly one byte of status.
            assert_eq!(front.memory.read(block.end, 1).unwrap(), [0xee]);

            let data = [number + 1; 512];
            let writing = Cuts {
                readable,
                writable: &[],
            };
            let block =
                Block::write(&front.memory, DATA, (Op::Write, 5), &data, 0, writing).unwrap();
            let driver = &mut front.driver;
            driver
                .submit_chain(&block.chain, block.status, indirect, 0)
                .unwrap();
            driver.publish().unwrap();
            let done = driver.wait(limit()).unwrap();
            assert_eq!((done.status, done.length), (status::OK, 1), "{cuts:?}");
            assert_eq!(front.read(5, 512), data, "{cuts:?}");
        }
    }
}
