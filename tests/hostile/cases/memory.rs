//! Tables of guest memory that make no sense, and memory that goes away under
//! rings, data and requests.

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};

use front_end::codes::{request, status};
use front_end::{Buffer, Op, Place, Region};
use rig::attached::{Attached, MEMORY};

use super::kinds::memfd;
use crate::suite::site::{Site, longs, refused, say, words};
use crate::suite::{Case, case};

/// Bytes of a region.
pub const SIZE: u64 = 1 << 20;

/// A place above the memory of the driver.
pub fn at(number: u64) -> Place {
    Place {
        guest: MEMORY + number * SIZE,
        user: 0x1000_0000_0000 + number * 3 * SIZE,
        size: SIZE,
    }
}

/// The fields of a region as a message has them.
pub fn region(place: Place, offset: u64) -> Vec<u8> {
    longs([place.guest, place.size, place.user, offset])
}

/// A table of regions.
pub fn table(regions: &[Vec<u8>]) -> Vec<u8> {
    let count = u32::try_from(regions.len()).unwrap();
    [words([count, 0]), regions.concat()].concat()
}

fn single(fields: &[u8]) -> Vec<u8> {
    [&[0; 8], fields].concat()
}

fn shared(size: u64) -> File {
    memfd(0, size, 0).unwrap().fd.into()
}

/// Nonsense in a table and as a single region; the memory that there is stays
/// in use.
fn nonsense() -> Vec<Case> {
    let good = at(0);
    let rows = [
        ("of nothing", Place { size: 0, ..good }, 0),
        ("of one byte", Place { size: 1, ..good }, 0),
        ("beyond the end of its file", good, SIZE),
        ("behind the end of its file", good, 1 << 40),
        (
            "that ends behind its file",
            Place {
                size: 2 * SIZE,
                ..good
            },
            0,
        ),
        ("whose offset wraps round", good, u64::MAX - 4095),
        ("whose offset is negative", good, 1 << 63),
        ("whose offset is odd", good, 1),
        ("whose offset is no page", Place { size: 4096, ..good }, 512),
        (
            "as large as can be said",
            Place {
                size: u64::MAX,
                ..good
            },
            0,
        ),
        (
            "of half of all addresses",
            Place {
                size: 1 << 63,
                ..good
            },
            0,
        ),
        (
            "that wraps round in the guest",
            Place {
                guest: u64::MAX - 4095,
                ..good
            },
            0,
        ),
        (
            "that wraps round in the front-end",
            Place {
                user: u64::MAX - 4095,
                ..good
            },
            0,
        ),
        (
            "over the driver's memory",
            Place {
                guest: MEMORY - 4096,
                ..good
            },
            0,
        ),
        (
            "over the driver's addresses",
            Place {
                user: 0x7f00_0000_1000,
                ..good
            },
            0,
        ),
        (
            "at an odd place",
            Place {
                guest: MEMORY + 1,
                size: SIZE - 4096,
                ..good
            },
            0,
        ),
        (
            "at an odd address",
            Place {
                user: good.user + 1,
                size: SIZE - 4096,
                ..good
            },
            0,
        ),
    ];
    let row = |(name, place, offset): (&'static str, Place, u64)| {
        case(
            format!("a region {name} comes alone and in a table"),
            move |site: &Site| {
                let mut front = site.attach();
                let file = shared(SIZE);
                let fds = [file.as_raw_fd(); 2];
                let fields = region(place, offset);
                let connection = &front.session.connection;
                say(
                    connection,
                    request::ADD_MEM_REG,
                    &single(&fields),
                    &fds[..1],
                );
                say(connection, request::REM_MEM_REG, &single(&fields), &[]);
                super::descriptors::read_once(&mut front);
                let connection = &front.session.connection;
                // Beside itself, it overlaps whatever it is.
                let both = table(&[fields.clone(), fields.clone()]);
                refused(connection, request::SET_MEM_TABLE, &both, &fds);
                say(
                    connection,
                    request::SET_MEM_TABLE,
                    &table(&[fields]),
                    &fds[..1],
                );
                super::descriptors::read_once(&mut front);
            },
        )
    };
    rows.into_iter().map(row).collect()
}

/// Tables whose count is not what comes with them.
fn counts() -> Vec<Case> {
    let rows: [(&str, u32, u64, usize); 9] = [
        ("a table of no regions", 0, 0, 0),
        ("a table of no regions with a descriptor", 0, 0, 1),
        ("a table with too few descriptors", 8, 8, 7),
        ("a table with too many descriptors", 7, 7, 8),
        ("a table that is shorter than it says", 8, 2, 8),
        ("a table that is longer than it says", 2, 8, 2),
        ("a table of more regions than one message has", 33, 33, 33),
        ("a table of 512 regions", 512, 64, 64),
        ("a table of as many regions as can be said", u32::MAX, 8, 8),
    ];
    let row = |(name, says, has, fds): (&'static str, u32, u64, usize)| {
        case(name, move |site: &Site| {
            let front = site.attach();
            let file = shared(64 * SIZE);
            let regions = (0..has).map(|number| region(at(number), number * SIZE));
            let payload = [words([says, 0]), regions.collect::<Vec<_>>().concat()].concat();
            let connection = &front.session.connection;
            say(
                connection,
                request::SET_MEM_TABLE,
                &payload,
                &vec![file.as_raw_fd(); fds],
            );
        })
    };
    rows.into_iter().map(row).collect()
}

/// A front-end with another region, whose file it keeps.
fn with_region(site: &Site, file: &File) -> Attached {
    let mut front = site.attach();
    let region = Region::in_file(at(0), file.try_clone().unwrap(), 0).unwrap();
    front.memory.add(region);
    front.session.share(&front.memory).unwrap();
    front
}

/// Requests into and out of a region, aligned and not, in one piece and in
/// many; what they say.
fn use_region(front: &mut Attached) -> Vec<u8> {
    let mut said = Vec::new();
    for start in [MEMORY, MEMORY + 1, MEMORY + SIZE - 65536] {
        for op in [Op::Read, Op::Write] {
            let piece = |address, length| Buffer {
                address,
                length,
                writable: op == Op::Read,
            };
            let whole = vec![piece(start, 65536)];
            let pieces = (0..8).map(|part| piece(start + part * 8192, 512)).collect();
            for buffers in [whole, pieces] {
                // Where attackers may write.
                let done = front.driver.run(op, (1 << 20) / 512, &buffers).unwrap();
                assert_ne!(done.status, status::UNTOUCHED);
                said.push(done.status);
            }
        }
    }
    said
}

fn cut(file: &File, length: u64) {
    file.set_len(length).unwrap();
}

fn going_away() -> Vec<Case> {
    vec![
        case("memory is cut off before it is used", |site| {
            let file = shared(SIZE);
            let mut front = with_region(site, &file);
            cut(&file, 0);
            use_region(&mut front);
        }),
        case("memory is cut off after it was used", |site| {
            let file = shared(SIZE);
            let mut front = with_region(site, &file);
            assert_eq!(use_region(&mut front), [status::OK; 12]);
            cut(&file, 4096);
            use_region(&mut front);
        }),
        case("memory is cut off and grows again", |site| {
            let file = shared(SIZE);
            let mut front = with_region(site, &file);
            cut(&file, 0);
            use_region(&mut front);
            cut(&file, SIZE);
            use_region(&mut front);
        }),
        case("memory is cut off before it is handed over", |site| {
            let file = shared(SIZE);
            let front = site.attach();
            cut(&file, SIZE / 2);
            let (fields, fds) = (region(at(0), 0), [file.as_raw_fd()]);
            let connection = &front.session.connection;
            refused(connection, request::ADD_MEM_REG, &single(&fields), &fds);
        }),
        case("memory is cut off and comes back all the time", |site| {
            let file = shared(SIZE);
            let mut front = with_region(site, &file);
            let over = std::sync::atomic::AtomicBool::new(false);
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    while !over.load(std::sync::atomic::Ordering::Relaxed) {
                        cut(&file, 0);
                        cut(&file, SIZE);
                    }
                });
                for _ in 0..10 {
                    use_region(&mut front);
                }
                over.store(true, std::sync::atomic::Ordering::Relaxed);
            });
        }),
        case("holes are punched into memory in use", |site| {
            let file = shared(SIZE);
            let mut front = with_region(site, &file);
            for _ in 0..4 {
                rig::files::punch(&file, 0, SIZE);
                assert_eq!(use_region(&mut front), [status::OK; 12]);
            }
        }),
        case("the memory of the ring is cut off", |site| ring_in(site, 0)),
        case("the end of the ring's memory is cut off", |site| {
            ring_in(site, 4096)
        }),
        case(
            "a gibibyte of memory is cut off and every other page is used",
            |site| {
                let size = 1 << 30;
                let file = shared(size);
                let mut front = site.attach();
                let place = Place { size, ..at(0) };
                front
                    .memory
                    .add(Region::in_file(place, file.try_clone().unwrap(), 0).unwrap());
                front.session.share(&front.memory).unwrap();
                cut(&file, 0);
                let mut page = 0;
                for _ in 0..700 {
                    for _ in 0..4 {
                        // Not aligned, so that the process copies; up to 14 pages each.
                        let next = |_| {
                            page += 2;
                            Buffer::writable(MEMORY + page * 4096 + 8, 512)
                        };
                        let data: Vec<_> = (0..14).map(next).collect();
                        front.driver.submit(Op::Read, 0, &data, 0);
                    }
                    front.driver.publish().unwrap();
                    for _ in 0..4 {
                        front.driver.wait(front_end::limit()).unwrap();
                    }
                }
            },
        ),
        case("memory can only be read", |site| {
            let file = shared(SIZE);
            let name = format!("/proc/self/fd/{}", file.as_raw_fd());
            let read_only = File::open(name).unwrap();
            let front = site.attach();
            let (fields, fds) = (region(at(0), 0), [read_only.as_raw_fd()]);
            let connection = &front.session.connection;
            refused(connection, request::ADD_MEM_REG, &single(&fields), &fds);
        }),
        case(
            "memory lies on a file system that is full",
            full_file_system,
        ),
        case("memory of huge pages that there are not is used", huge),
    ]
}

/// The ring's own memory shrinks while it is served.
fn ring_in(site: &Site, left: u64) {
    let mut session = site.open();
    let file = shared(MEMORY);
    let mut memory = front_end::GuestMemory::default();
    let place = Place {
        guest: 0,
        user: 0x7f00_0000_0000,
        size: MEMORY,
    };
    memory.add(Region::in_file(place, file.try_clone().unwrap(), 0).unwrap());
    let setup = front_end::Setup {
        size: 256,
        features: session.features,
        indirect: 0,
    };
    let mut driver = front_end::Driver::new(&memory, 0, setup).unwrap();
    session.start(&memory, &[driver.ring()]).unwrap();
    let data = [Buffer::writable(1 << 20, 65536)];
    for number in 0..64 {
        driver.submit(Op::Read, 0, &data, number);
    }
    driver.publish().unwrap();
    cut(&file, left);
    let _ = driver.ring().kick();
    // Whatever it says, as the ring is gone.
    say(
        &session.connection,
        request::GET_VRING_BASE,
        &words([0, 0]),
        &[],
    );
}

/// A file system of two pages, for the guest's memory.
fn full_file_system(site: &Site) {
    let folder = site.files.join("full");
    std::fs::create_dir_all(&folder).unwrap();
    let mut mount = std::process::Command::new("mount");
    mount
        .args(["-t", "tmpfs", "-o", "size=64k", "none"])
        .arg(&folder);
    if let Err(why) = rig::program::run(&mut mount) {
        println!("no tmpfs here: {why}");
        return;
    }
    let path = folder.join("memory");
    drop(File::create_new(&path).unwrap());
    let file = File::options().read(true).write(true).open(&path).unwrap();
    cut(&file, SIZE);
    let mut front = with_region(site, &file);
    let said = use_region(&mut front);
    drop(front);
    drop(file);
    // It is in use until the process has let go of it.
    let mut umount = std::process::Command::new("umount");
    rig::program::run(umount.arg("-l").arg(&folder)).unwrap();
    // The first page may have found room.
    assert!(said.iter().any(|&one| one != status::OK), "{said:?}");
}

fn huge(site: &Site) {
    let size = 16 << 20;
    for seals in [
        0,
        libc::F_SEAL_SHRINK,
        libc::F_SEAL_SHRINK | libc::F_SEAL_GROW,
    ] {
        let Ok(made) = memfd(libc::MFD_HUGETLB, size, seals) else {
            println!("no huge pages here");
            return;
        };
        let file: OwnedFd = made.fd;
        let mut front = site.attach();
        let place = Place { size, ..at(0) };
        let (fields, fds) = (region(place, 0), [file.as_raw_fd()]);
        let connection = &front.session.connection;
        say(connection, request::ADD_MEM_REG, &single(&fields), &fds);
        for (address, length) in [
            (MEMORY, 4096),
            (MEMORY + 1, 4096),
            (MEMORY + (2 << 20) - 1, 512),
        ] {
            for op in [Op::Read, Op::Write] {
                let data = [Buffer {
                    address,
                    length,
                    writable: op == Op::Read,
                }];
                let done = front.driver.run(op, (1 << 20) / 512, &data).unwrap();
                assert_ne!(done.status, status::UNTOUCHED);
            }
        }
    }
}

/// Regions come and go in every order.
fn many() -> Vec<Case> {
    vec![
        case("regions are added until there is no more room", |site| {
            let front = site.attach();
            let file = shared(SIZE);
            let connection = &front.session.connection;
            for number in 0..600 {
                let payload = single(&region(at(number), 0));
                say(
                    connection,
                    request::ADD_MEM_REG,
                    &payload,
                    &[file.as_raw_fd()],
                );
            }
        }),
        case("a region is removed that was never added", |site| {
            let front = site.attach();
            for number in 0..64 {
                let payload = single(&region(at(number), 0));
                refused(
                    &front.session.connection,
                    request::REM_MEM_REG,
                    &payload,
                    &[],
                );
            }
        }),
        case("all memory is taken away under a ring that runs", |site| {
            let mut front = site.attach();
            super::descriptors::read_once(&mut front);
            say(
                &front.session.connection,
                request::SET_MEM_TABLE,
                &table(&[]),
                &[],
            );
            super::descriptors::read_once(&mut front);
        }),
        case("memory changes place under a ring that runs", |site| {
            let mut front = site.attach();
            let file = shared(MEMORY);
            for number in 0..20 {
                let place = Place {
                    guest: number * 4096,
                    size: MEMORY,
                    ..at(0)
                };
                let payload = table(&[region(place, 0)]);
                let fds = [file.as_raw_fd()];
                say(
                    &front.session.connection,
                    request::SET_MEM_TABLE,
                    &payload,
                    &fds,
                );
                front.driver.ring().kick().unwrap();
            }
            super::descriptors::read_once(&mut front);
        }),
    ]
}

pub fn cases() -> Vec<Case> {
    [nonsense(), counts(), going_away(), many()]
        .into_iter()
        .flatten()
        .collect()
}
