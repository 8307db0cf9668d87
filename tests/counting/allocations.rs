//! Allocations of the worker per request: none. The real disk and the real
//! server run in this process, under an allocator that counts.
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::io;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use extentd::disk::{Disk, DiskOptions};
use extentd::options::config::{IoPath, OnError};
use front_end::load::{Pattern, Plan};
use vhost_backend::{Device, DiskInfo, Endpoint, Options, PollTime, Server};

use crate::served::{Image, Way, plan, run, warmed_up};

thread_local! {
    static COUNTED: Cell<bool> = const { Cell::new(false) };
}

/// Allocations of all counted threads.
static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

/// The system's allocator, counting for threads that ask for it.
struct Counting;

impl Counting {
    fn count() {
        // A thread that is ending has no such variable any more.
        if COUNTED.try_with(Cell::get).unwrap_or(false) {
            ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        }
    }
}

// SAFETY: everything is left to the system's allocator; counting allocates
// nothing, as the variable is constant at first and has no destructor.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        Self::count();
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        Self::count();
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        Self::count();
        // SAFETY: as above.
        unsafe { System.realloc(pointer, layout, size) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The disk, whose workers are counted from when they open their I/O.
struct Watched(Disk);

impl Device for Watched {
    type Channel = <Disk as Device>::Channel;

    fn info(&self) -> DiskInfo {
        self.0.info()
    }

    fn capacity_sectors(&self) -> u64 {
        self.0.capacity_sectors()
    }

    fn channel(&self, worker: usize, slots: usize) -> io::Result<Self::Channel> {
        COUNTED.set(true);
        self.0.channel(worker, slots)
    }

    fn rings_started(&self) -> io::Result<()> {
        self.0.rings_started()
    }

    fn rings_stopped(&self) {
        self.0.rings_stopped();
    }
}

/// Runs until the map is there, or is left alone where first writes go on:
/// what a hold leaves of a window that is loaded is allocated.
const ROUNDS: usize = 20;

/// No window that is being filled is quiet for as long.
const LONG: Duration = Duration::from_secs(3600);

/// Allocations by workers during the last of some runs of so many requests.
fn count(image: &Image, load: Plan, requests: u64) -> u64 {
    let way = image.way;
    let options = DiskOptions {
        read_only: false,
        logical_block_size: None,
        serial: [0; 20],
        lock: true,
        io_path: match way {
            Way::File => IoPath::File,
            Way::Disk => IoPath::Disk,
        },
        map_budget: 64 << 20,
        pin_reserve: 0,
        pin_guest_memory: false,
        on_enospc: OnError::Report,
        on_io_error: OnError::Report,
        may_poll: true,
        swap: None,
    };
    let before_start = ALLOCATIONS.load(Ordering::Relaxed);
    let disk = Arc::new(Watched(Disk::open(&image.path, &options).unwrap()));
    let options = Options {
        queues: 2,
        queue_size: 256,
        workers: 1,
        cpus: Vec::new(),
        poll: PollTime::Never,
    };
    let mut server = Server::new(disk, options).unwrap();
    // Opening the I/O allocates: what is counted is counted.
    assert!(ALLOCATIONS.load(Ordering::Relaxed) > before_start);
    let handle = server.handle();
    let listener = UnixListener::bind(image.socket()).unwrap();
    let serving = thread::spawn(move || server.run(Endpoint::Listener(listener)));
    let mut client = warmed_up(&image.socket(), load);
    let mut allocations = u64::MAX;
    for _ in 0..ROUNDS {
        let before = ALLOCATIONS.load(Ordering::Relaxed);
        let report = run(&mut client, requests);
        allocations = ALLOCATIONS.load(Ordering::Relaxed) - before;
        assert_eq!(report.requests, requests);
        if allocations == 0 {
            break;
        }
    }
    client.close().unwrap();
    handle.stop();
    serving.join().unwrap().unwrap();
    allocations
}

/// One test, as all workers share the counter.
#[test]
fn requests_allocate_nothing() {
    let every_way = [
        plan(Pattern::Randread, 32),
        plan(Pattern::Randrw, 128),
        Plan {
            size: 128 << 10,
            ..plan(Pattern::Read, 16)
        },
    ];
    for load in every_way {
        check(Way::File, load.clone());
        check(Way::Disk, load);
    }
    let less_than_a_block = Plan {
        size: 512,
        ..plan(Pattern::Randwrite, 32)
    };
    check(Way::File, less_than_a_block);
    // Each run writes another sixteenth of the image, or nearly, however long others have the CPU
    // in between.
    mapping::path::leave_out(mapping::path::Ablation {
        left_out: |_| false,
        unguarded: false,
        lease_delay: None,
        quiet: Some(LONG),
    });
    if let Some(image) = Image::sparse(Way::Disk) {
        let allocations = count(&image, plan(Pattern::Randwrite, 32), 2000);
        assert_eq!(allocations, 0, "first writes");
    }
}

fn check(way: Way, load: Plan) {
    let what = format!("{way:?}, {:?} of {} bytes", load.pattern, load.size);
    if let Some(image) = Image::new(way) {
        let allocations = count(&image, load, 5000);
        assert_eq!(allocations, 0, "{what}");
    }
}
