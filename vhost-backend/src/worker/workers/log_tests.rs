//! The log of dirty pages, as the workers take it.

use virtio_bindings::virtio_blk::VIRTIO_BLK_T_IN;

use super::tests::rig;

#[test]
fn vu_36_the_old_log_is_not_written_once_the_new_one_is_in_use() {
    use crate::memory::dirty::tests::{log, take_pages};
    let rig = rig(2, 2, true);
    let mut clients = [rig.client(0), rig.client(1)];
    for client in &clients {
        rig.start(client, false, false, true);
    }
    let mut older = Vec::new();
    for _ in 0..5 {
        let (log, file) = log(64);
        rig.log(&log, true);
        assert!(older.iter().all(|file| take_pages(file).is_empty()));
        for (queue, client) in clients.iter_mut().enumerate() {
            client.offer(0, VIRTIO_BLK_T_IN);
            client.kick();
            client.wait_used(1);
            assert_eq!(take_pages(&file), [0x10 * (queue as u64 + 1) + 1]);
        }
        older.push(file);
    }
}
