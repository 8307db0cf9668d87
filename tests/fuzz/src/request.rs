//! Requests over plain bytes, against the rules written down a second time.
#![no_main]

mod rules;

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use rules::{Disk, Verdict};
use vhost_backend::Status;
use vhost_backend::fuzzing::{Judged, judge};

/// Mostly what a driver might send, so that not all of it ends at the first check.
#[derive(Arbitrary, Debug)]
struct Input<'a> {
    disk: Disk,
    kind: Kind,
    sector: Number,
    rest: Rest<'a>,
    writable: Number,
}

#[derive(Arbitrary, Debug)]
enum Kind {
    Known(u8),
    Any(u32),
}

#[derive(Arbitrary, Debug)]
enum Number {
    Small(u8),
    Sectors(u8),
    Any(u64),
}

impl Number {
    fn value(&self) -> u64 {
        match *self {
            Number::Small(n) => n.into(),
            Number::Sectors(n) => u64::from(n) * 512,
            Number::Any(n) => n,
        }
    }
}

#[derive(Arbitrary, Debug)]
enum Rest<'a> {
    Segment {
        sector: u64,
        sectors: u8,
        flags: u8,
    },
    Segments(Vec<[u8; 16]>),
    Sectors(u8),
    Bytes(&'a [u8]),
    /// Instead of the header as well.
    All(&'a [u8]),
}

impl Input<'_> {
    fn readable(&self) -> Vec<u8> {
        let kind = match self.kind {
            Kind::Known(kind) => (kind % 16).into(),
            Kind::Any(kind) => kind,
        };
        let mut bytes = Vec::new();
        bytes.extend(kind.to_le_bytes());
        bytes.extend([0xaa; 4]);
        bytes.extend(self.sector.value().to_le_bytes());
        match &self.rest {
            Rest::Segment {
                sector,
                sectors,
                flags,
            } => {
                bytes.extend(sector.to_le_bytes());
                bytes.extend(u32::from(*sectors).to_le_bytes());
                bytes.extend(u32::from(*flags).to_le_bytes());
            }
            Rest::Segments(segments) => bytes.extend(segments.iter().flatten()),
            Rest::Sectors(sectors) => bytes.extend(vec![7; usize::from(*sectors) * 512]),
            Rest::Bytes(more) => bytes.extend(*more),
            Rest::All(all) => bytes = all.to_vec(),
        }
        bytes
    }
}

fuzz_target!(|input: Input<'_>| {
    let (readable, writable) = (input.readable(), input.writable.value());
    let disk = &input.disk;
    let judged = judge(
        &readable,
        writable,
        &disk.info(),
        disk.capacity(),
        disk.writeback,
    );
    let too_long = writable > u64::from(u32::MAX);
    match rules::judge(disk, &readable, writable) {
        Verdict::Refused(with) => match judged {
            Judged::Done(status, written) => {
                assert!(with.contains(&status) && written.is_empty(), "{status:?}");
            }
            other => panic!("not refused: {other:?}"),
        },
        Verdict::Answered(bytes) => assert_eq!(judged, Judged::Done(Status::Ok, bytes)),
        Verdict::Out(op, data) => assert_eq!(
            judged,
            Judged::Io {
                op,
                out: Some(data),
                into: 0
            }
        ),
        // No chain is that long.
        Verdict::In(..) if too_long => assert_eq!(judged, Judged::Done(Status::IoErr, Vec::new())),
        Verdict::In(op, bytes) => assert_eq!(
            judged,
            Judged::Io {
                op,
                out: None,
                into: u32::try_from(bytes).unwrap()
            }
        ),
        Verdict::Bare(op) => assert_eq!(
            judged,
            Judged::Io {
                op,
                out: None,
                into: 0
            }
        ),
    }
});
