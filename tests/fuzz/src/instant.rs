//! A disk that does everything at once.

use std::io;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use vhost_backend::{
    Completion, Device, DiscardLimits, DiskInfo, HostRegion, IoChannel, Op, Status, Tag, Topology,
    WriteZeroesLimits,
};

pub struct Instant {
    pub sectors: AtomicU64,
}

pub struct Channel {
    watched: Vec<RawFd>,
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
        Ok(Channel {
            watched: Vec::new(),
            ended: Vec::new(),
        })
    }

    fn rings_started(&self) -> io::Result<()> {
        Ok(())
    }

    fn rings_stopped(&self) {}
}

impl IoChannel for Channel {
    fn room(&mut self, _requests: usize) {}

    unsafe fn submit(&mut self, tag: Tag, op: Op, data: &[libc::iovec]) {
        for piece in data {
            let host = piece.iov_base.cast::<u8>();
            // SAFETY: the pieces are mapped until the request has ended; those of a read are for
            // writing. Volatile, so that the bytes are really touched.
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

    fn memory(&mut self, _regions: &[HostRegion]) {}

    fn has_ended(&mut self) -> bool {
        !self.ended.is_empty()
    }

    fn watch(&mut self, index: usize, fd: Option<RawFd>) {
        self.watched.resize(self.watched.len().max(index + 1), -1);
        self.watched[index] = fd.unwrap_or(-1);
    }

    fn wait(&mut self, timeout: Option<Duration>) {
        if !self.ended.is_empty() {
            return;
        }
        let poll = |&fd: &RawFd| libc::pollfd {
            fd,
            events: libc::POLLIN,
            revents: 0,
        };
        let mut fds: Vec<_> = self.watched.iter().map(poll).collect();
        let timeout = timeout.map_or(-1, |timeout| timeout.as_millis() as i32);
        // SAFETY: all entries are writable for the call.
        unsafe { libc::poll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, timeout) };
        for fd in fds.iter().filter(|fd| fd.revents != 0) {
            let mut count = [0_u8; 8];
            // SAFETY: eight bytes are writable; what is watched does not block.
            unsafe { libc::read(fd.fd, count.as_mut_ptr().cast(), count.len()) };
        }
    }
}
