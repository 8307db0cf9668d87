//! A disk that does everything at once.

use std::io;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use vhost_backend::{
    Completion, Device, DiscardLimits, DiskInfo, IoChannel, Op, Status, Tag, Topology,
    WriteZeroesLimits,
};

pub struct Instant {
    pub sectors: AtomicU64,
}

pub struct Channel {
    ended: Vec<Completion>,
}

impl Device for Instant {
    type Channel = Channel;

    fn info(&self) -> DiskInfo {
        DiskInfo {
            read_only: false,
            logical_block_size: 512,
            topology: Topology::default(),
            discard: Some(DiscardLimits {
                max_sectors: 100,
                alignment_sectors: 8,
            }),
            write_zeroes: Some(WriteZeroesLimits {
                max_sectors: 100,
                may_unmap: true,
            }),
            serial: [b'x'; 20],
        }
    }

    fn capacity_sectors(&self) -> u64 {
        self.sectors.load(Ordering::Relaxed)
    }

    fn channel(&self, _worker: usize, _slots: usize) -> io::Result<Channel> {
        Ok(Channel { ended: Vec::new() })
    }

    fn rings_started(&self) -> io::Result<()> {
        Ok(())
    }

    fn rings_stopped(&self) {}
}

impl IoChannel for Channel {
    fn submit(&mut self, tag: Tag, op: Op, data: &[libc::iovec]) {
        for piece in data {
            let host = piece.iov_base.cast::<u8>();
            // SAFETY: the pieces are mapped until the request has ended; those of a read are for writing.
            // Volatile, so that the bytes are really touched.
            unsafe {
                match op {
                    Op::Read { .. } => host.write_bytes(0x5a, piece.iov_len),
                    _ => drop(
                        (0..piece.iov_len)
                            .map(|at| host.add(at).read_volatile())
                            .max(),
                    ),
                }
            }
        }
        self.ended.push(Completion {
            tag,
            status: Status::Ok,
        });
    }

    fn flush_submissions(&mut self) {}

    fn reap(&mut self, done: &mut impl FnMut(Completion)) {
        self.ended.drain(..).for_each(done);
    }

    fn wait(&mut self, wake: RawFd, timeout: Option<Duration>) {
        if !self.ended.is_empty() {
            return;
        }
        let mut fd = libc::pollfd {
            fd: wake,
            events: libc::POLLIN,
            revents: 0,
        };
        let timeout = timeout.map_or(-1, |timeout| timeout.as_millis() as i32);
        // SAFETY: one pollfd is writable for the call.
        unsafe { libc::poll(&raw mut fd, 1, timeout) };
    }
}
