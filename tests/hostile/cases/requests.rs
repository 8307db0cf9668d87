//! Requests of a disk that ask for what there is not, or in no form that
//! there is.

use front_end::codes::descriptor::{NEXT, WRITE};
use front_end::codes::status;
use front_end::{Block, Buffer, Cuts, Op, Segment, limit};
use rig::attached::{Attached, DATA};
use rig::small_image::IMAGE;

use super::table::{BUFFER, HEADER, STATUS, header, offer, part, returned};
use crate::suite::{Case, case};

/// Sectors of the image.
const SECTORS: u64 = IMAGE as u64 / 512;
/// The first sector that attackers may write.
const FREE: u64 = (1 << 20) / 512;

fn row(name: impl Into<String>, harm: impl Fn(&mut Attached) + 'static) -> Case {
    case(name, move |site| {
        let mut front = site.attach();
        harm(&mut front);
        // It is served all the same.
        let read = front.read(0, 512);
        assert_eq!(read, rig::small_image::content(0, 512));
    })
}

/// The status of a request as it lies there.
fn run(front: &mut Attached, block: &Block) -> u8 {
    let driver = &mut front.driver;
    driver
        .submit_chain(&block.chain, block.status, false, 0)
        .unwrap();
    driver.publish().unwrap();
    driver.wait(limit()).unwrap().status
}

/// The status of a request with these data; it must not succeed.
fn fails(front: &mut Attached, op: Op, sector: u64, data: &[Buffer]) {
    let done = front.driver.run(op, sector, data).unwrap();
    assert_ne!(done.status, status::OK, "{op:?} {sector} {data:?}");
}

/// Whatever it says, there is nothing that it could have written.
fn untouched(front: &mut Attached, op: Op, data: &[Buffer]) {
    front.memory.fill(BUFFER, 512, 0x77).unwrap();
    let done = front.driver.run(op, FREE, data).unwrap();
    assert_ne!(done.status, status::UNTOUCHED);
    assert_eq!(front.memory.read(BUFFER, 512).unwrap(), [0x77; 512]);
}

fn kinds() -> Vec<Case> {
    let unknown = [
        2,
        3,
        5,
        6,
        7,
        9,
        10,
        12,
        14,
        15,
        16,
        18,
        20,
        22,
        24,
        26,
        1 << 31,
        u32::MAX,
    ];
    let mut cases: Vec<_> = (unknown.chunks(3))
        .map(|kinds| {
            let kinds = kinds.to_vec();
            row(
                format!("requests have the unknown types {kinds:?}"),
                move |front| {
                    for &kind in &kinds {
                        for data in [
                            vec![],
                            vec![Buffer::writable(BUFFER, 512)],
                            vec![Buffer::readable(BUFFER, 4096)],
                            vec![
                                Buffer::readable(BUFFER, 16),
                                Buffer::writable(BUFFER, 1 << 20),
                            ],
                        ] {
                            fails(front, Op::Other(kind), FREE, &data);
                        }
                    }
                },
            )
        })
        .collect();
    cases.push(row("a request has the oldest form of its type", |front| {
        // A barrier was a flag of the type once.
        for op in [0, 1, 4] {
            fails(
                front,
                Op::Other(op | 1 << 31),
                FREE,
                &[Buffer::writable(BUFFER, 512)],
            );
        }
    }));
    cases
}

fn places() -> Vec<Case> {
    let rows: [(&str, u64, u32); 10] = [
        ("behind the end", SECTORS, 512),
        ("over the end by a sector", SECTORS - 1, 1024),
        ("over the end by far", SECTORS - 8, 1 << 20),
        ("at the last sector that can be said", u64::MAX, 512),
        ("where its bytes wrap round", u64::MAX / 512 + 1, 512),
        (
            "where its bytes wrap round to the image",
            (u64::MAX / 512 + 1) - 1,
            1024,
        ),
        ("where its bytes are negative", 1 << 54, 512),
        (
            "where its bytes are negative by its length",
            (1 << 54) - 1,
            1024,
        ),
        ("with a half of a sector", FREE, 256),
        ("with one byte too much", FREE, 513),
    ];
    let one = |(name, sector, length): (&'static str, u64, u32)| {
        row(format!("reads and writes lie {name}"), move |front| {
            fails(front, Op::Read, sector, &[Buffer::writable(BUFFER, length)]);
            fails(
                front,
                Op::Write,
                sector,
                &[Buffer::readable(BUFFER, length)],
            );
            let pieces = |make: fn(u64, u32) -> Buffer| {
                [
                    make(BUFFER, 1),
                    make(BUFFER + 7, length - 2),
                    make(BUFFER, 1),
                ]
            };
            fails(front, Op::Read, sector, &pieces(Buffer::writable));
            fails(front, Op::Write, sector, &pieces(Buffer::readable));
        })
    };
    rows.into_iter().map(one).collect()
}

fn at(sector: u64, sectors: u32, flags: u32) -> Segment {
    Segment {
        sector,
        sectors,
        flags,
    }
}

fn segments() -> Vec<Case> {
    let rows: [(&str, Vec<Segment>); 12] = [
        ("behind the end", vec![at(SECTORS, 8, 0)]),
        ("over the end", vec![at(SECTORS - 1, 2, 0)]),
        ("as long as can be said", vec![at(0, u32::MAX, 0)]),
        ("whose end wraps round", vec![at(u64::MAX, 8, 0)]),
        ("whose bytes wrap round", vec![at(u64::MAX / 512 + 1, 8, 0)]),
        ("whose bytes are negative", vec![at(1 << 54, 8, 0)]),
        ("with flags that nobody knows", vec![at(FREE, 8, 2)]),
        ("with all flags", vec![at(FREE, 8, u32::MAX)]),
        ("of which there are none", vec![]),
        ("of which there are too many", vec![at(FREE, 8, 0); 1024]),
        (
            "of which the last is bad",
            [vec![at(FREE, 8, 0); 3], vec![at(SECTORS, 8, 0)]].concat(),
        ),
        (
            "of which the first is bad",
            [vec![at(SECTORS, 8, 0)], vec![at(FREE, 8, 0)]].concat(),
        ),
    ];
    let one = |(name, segments): (&'static str, Vec<Segment>)| {
        row(
            format!("ranges are discarded and zeroed {name}"),
            move |front| {
                for op in [Op::Discard, Op::WriteZeroes] {
                    let done = front.driver.segments(op, BUFFER, &segments).unwrap();
                    assert_ne!(done.status, status::OK, "{op:?} {segments:?}");
                }
            },
        )
    };
    let mut cases: Vec<_> = rows.into_iter().map(one).collect();
    cases.push(row("ranges come in pieces, and end in one", |front| {
        let bytes = at(FREE, 8, 0).bytes();
        front.memory.write(BUFFER, &bytes.repeat(4)).unwrap();
        for op in [Op::Discard, Op::WriteZeroes] {
            for length in [1, 8, 15, 17, 31, 33] {
                fails(front, op, 0, &[Buffer::readable(BUFFER, length)]);
            }
            let data: Vec<_> = (0..7).map(|n| Buffer::readable(BUFFER + n, 1)).collect();
            fails(front, op, 0, &data);
        }
    }));
    cases
}

fn forms() -> Vec<Case> {
    vec![
        row("a header is cut at each byte", |front| {
            for first in 1..16 {
                let cuts = Cuts {
                    readable: &[first],
                    writable: &[],
                };
                let request = (Op::Write, FREE);
                let block = Block::write(&front.memory, BUFFER, request, &[1; 512], 0, cuts);
                assert_eq!(run(front, &block.unwrap()), status::OK);
            }
        }),
        row("a request is a descriptor for each byte", |front| {
            let cuts = Cuts {
                readable: &[1; 20],
                writable: &[1; 20],
            };
            for op in [Op::Read, Op::GetId, Op::Flush, Op::Other(99)] {
                let block = Block::write(&front.memory, BUFFER, (op, 0), &[], 19, cuts);
                run(front, &block.unwrap());
            }
        }),
        row("a header is too short by each byte", |front| {
            front.memory.write(HEADER, &header(1, FREE)).unwrap();
            for length in 0..16 {
                let table = [part(HEADER, length, NEXT, 1), part(STATUS, 1, WRITE, 0)];
                super::table::fails(front, &table);
            }
        }),
        row("the serial number has room for each length", |front| {
            for length in 0..64 {
                let data: Vec<_> = (length > 0)
                    .then(|| Buffer::writable(BUFFER, length))
                    .into_iter()
                    .collect();
                front.driver.run(Op::GetId, 0, &data).unwrap();
            }
            untouched(front, Op::GetId, &[Buffer::readable(BUFFER, 20)]);
        }),
        row("a flush comes with data", |front| {
            front
                .driver
                .run(Op::Flush, u64::MAX, &[Buffer::readable(BUFFER, 512)])
                .unwrap();
            front
                .driver
                .run(Op::Flush, 1, &[Buffer::writable(BUFFER, 513)])
                .unwrap();
        }),
        row(
            "a read has data to be written and the other way round",
            |front| {
                untouched(front, Op::Read, &[Buffer::readable(BUFFER, 512)]);
                untouched(front, Op::Write, &[Buffer::writable(BUFFER, 512)]);
                untouched(front, Op::Read, &[]);
                untouched(front, Op::Write, &[]);
            },
        ),
        row("header, data and status are the same byte", |front| {
            front.memory.write(HEADER, &header(0, 0)).unwrap();
            let table = [
                part(HEADER, 16, NEXT, 1),
                part(HEADER, 512, NEXT | WRITE, 2),
                part(HEADER, 1, WRITE, 0),
            ];
            offer(front, &table);
            assert!(returned(front));
        }),
        row("a thousand reads have one buffer and overlap", |front| {
            for round in 0..50 {
                for part in 0..20 {
                    let data = [Buffer::writable(BUFFER + part * 3, 65536)];
                    front.driver.submit(Op::Read, round * 8, &data, 0);
                }
                front.driver.publish().unwrap();
                for _ in 0..20 {
                    assert_eq!(front.driver.wait(limit()).unwrap().status, status::OK);
                }
            }
        }),
        row("a request is larger than any disk", |front| {
            // The same buffer over and over, 14 MiB in all.
            let whole = Buffer::writable(DATA, 1 << 20);
            fails(front, Op::Read, 0, &[whole; 14]);
            let whole = Buffer::readable(DATA, 1 << 20);
            fails(front, Op::Write, 0, &[whole; 14]);
        }),
        row("empty buffers stand between the others", |front| {
            let none = Buffer::writable(BUFFER, 0);
            let half = Buffer::writable(BUFFER, 256);
            front
                .driver
                .run(Op::Read, 0, &[none, half, none, half, none])
                .unwrap();
        }),
        row("a write is odd in every way", |front| {
            for shift in [1, 3, 511, 512, 513, 4095] {
                let data = [
                    Buffer::readable(BUFFER + shift, 511),
                    Buffer::readable(BUFFER + 2 * shift, 1),
                    Buffer::readable(BUFFER, 512),
                ];
                let done = front.driver.run(Op::Write, FREE + 1, &data).unwrap();
                assert_eq!(done.status, status::OK);
            }
        }),
    ]
}

pub fn cases() -> Vec<Case> {
    [kinds(), places(), segments(), forms()]
        .into_iter()
        .flatten()
        .collect()
}
