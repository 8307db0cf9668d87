//! Requests, good and bad, and what a guest sees of their answers.

use front_end::{Buffer, Op, Segment};
use rig::attached::{Attached, DATA};
use rig::small_image::IMAGE;

/// Bytes of guest memory that a request may use.
const SPACE: usize = 1 << 20;
const SECTORS: u64 = IMAGE as u64 / 512;

#[derive(Debug, Clone)]
pub struct Request {
    op: Op,
    sector: u64,
    /// For discards and zeroes.
    segment: Option<Segment>,
    /// The lengths of its buffers in bytes.
    lengths: Vec<u32>,
    fill: u8,
}

/// What the guest sees.
#[derive(PartialEq, Eq)]
pub struct Outcome {
    pub status: u8,
    length: u32,
    memory: Vec<u8>,
}

impl std::fmt::Debug for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "status {} length {}", self.status, self.length)
    }
}

/// An endless sequence of requests, the same for the same seed.
pub fn random(seed: u64) -> impl Iterator<Item = Request> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut below = move |limit: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % limit
    };
    std::iter::repeat_with(move || {
        let kinds = [
            Op::Read,
            Op::Read,
            Op::Write,
            Op::Write,
            Op::Flush,
            Op::GetId,
            Op::Discard,
            Op::WriteZeroes,
            Op::Other(7 + (u32::try_from(below(3)).unwrap_or(0)) * 7),
        ];
        let op = kinds[usize::try_from(below(9)).unwrap_or(0)];
        let sector = match below(20) {
            0 => SECTORS - below(4),
            1 => u64::MAX / 512 - below(3),
            _ => below(SECTORS - 300),
        };
        let segment = matches!(op, Op::Discard | Op::WriteZeroes).then(|| Segment {
            sector,
            sectors: u32::try_from(below(260)).unwrap_or(0),
            flags: u32::try_from(below(3)).unwrap_or(0),
        });
        let lengths = if segment.is_some() {
            vec![if below(10) == 0 { 15 } else { 16 }]
        } else {
            let count = below(5);
            (0..count)
                .map(|_| {
                    let sectors = u32::try_from(1 + below(40)).unwrap_or(1);
                    let ragged = u32::from(below(12) == 0);
                    sectors * 512 + ragged
                })
                .collect()
        };
        Request {
            op,
            sector,
            segment,
            lengths,
            fill: u8::try_from(below(256)).unwrap_or(0),
        }
    })
}

/// Has a request served; all of the memory that it might have changed.
pub fn carry_out(front: &mut Attached, request: &Request) -> Outcome {
    front.memory.fill(DATA, SPACE, request.fill).unwrap();
    if let Some(segment) = request.segment {
        front.memory.write(DATA, &segment.bytes()).unwrap();
    }
    let readable = matches!(request.op, Op::Write | Op::Discard | Op::WriteZeroes);
    let mut at = DATA;
    let buffers: Vec<_> = request
        .lengths
        .iter()
        .map(|&length| {
            let buffer = Buffer {
                address: at,
                length,
                writable: !readable,
            };
            at += u64::from(length) + 3;
            buffer
        })
        .collect();
    let done = front.driver.run(request.op, request.sector, &buffers);
    let done = done.unwrap();
    Outcome {
        status: done.status,
        length: done.length,
        memory: front.memory.read(DATA, SPACE).unwrap(),
    }
}
