//! What each sector of a disk may hold, by what was asked of it.

use std::ops::Range;

/// What the sectors of other files hold is at least this, so that it is told
/// from what a guest has written.
pub const FOREIGN: Value = 1 << 31;

/// What a sector is that does not hold what it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Bytes of another sector, or of no sector at all.
    Wrong,
    /// What was right before it was overwritten.
    Stale,
    /// Another file's.
    Foreign,
}

/// How many sectors were found to be what.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Found {
    /// Those of [`Kind::Wrong`].
    pub wrong: usize,
    /// Those of [`Kind::Stale`].
    pub stale: usize,
    /// Those of [`Kind::Foreign`].
    pub foreign: usize,
}

impl Found {
    /// Counts one more.
    pub fn count(&mut self, kind: Kind) {
        match kind {
            Kind::Wrong => self.wrong += 1,
            Kind::Stale => self.stale += 1,
            Kind::Foreign => self.foreign += 1,
        }
    }

    /// Adds up.
    pub fn add(&mut self, other: Found) {
        self.wrong += other.wrong;
        self.stale += other.stale;
        self.foreign += other.foreign;
    }
}

/// A sector that does not hold what it may.
#[derive(Debug, Clone)]
pub struct Fault {
    /// What kind of fault it is.
    pub kind: Kind,
    /// One sentence.
    pub text: String,
}

/// Bytes of a sector.
pub const SECTOR: usize = 512;

/// Names the content of a sector together with the sector's number; 0 is
/// zeros.
pub type Value = u32;

/// Whether `bytes` are those of a sector that holds `value`.
pub fn holds(value: Value, sector: usize, bytes: &[u8]) -> bool {
    if value == 0 {
        return bytes.iter().all(|&byte| byte == 0);
    }
    let mut words = words(value, sector);
    bytes
        .chunks_exact(8)
        .all(|word| words.next().is_some_and(|w| w.to_le_bytes() == word))
}

/// The bytes of sectors that hold `value`.
pub fn content(value: Value, sectors: Range<usize>) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(sectors.len() * SECTOR);
    for sector in sectors {
        if value == 0 {
            bytes.resize(bytes.len() + SECTOR, 0);
        } else {
            bytes.extend(words(value, sector).flat_map(u64::to_le_bytes));
        }
    }
    bytes
}

/// The first says what the sector holds, for messages.
fn words(value: Value, sector: usize) -> impl Iterator<Item = u64> {
    let first = (u64::from(value) << 32) | sector as u64;
    std::iter::successors(Some(first), |word| {
        Some(
            word.wrapping_mul(0x5851_f42d_4c95_7f2d)
                .wrapping_add(0x1405_7b7e_f767_814f),
        )
    })
    .take(SECTOR / 8)
}

/// What a sector holds, if it is something of its own.
pub fn value(sector: usize, bytes: &[u8]) -> Option<Value> {
    let first = u64::from_le_bytes(bytes[..8].try_into().unwrap());
    let named = Value::try_from(first >> 32).unwrap();
    [0, named]
        .into_iter()
        .find(|&value| holds(value, sector, bytes))
}

/// What a sector is that holds none of what it may.
fn kind(sector: usize, bytes: &[u8]) -> Kind {
    if value(sector, bytes).is_some_and(|value| value < FOREIGN) {
        return Kind::Stale;
    }
    let first = u64::from_le_bytes(bytes[..8].try_into().unwrap());
    let other = usize::try_from(first & 0xffff_ffff).unwrap();
    match value(other, bytes) {
        Some(FOREIGN..) => Kind::Foreign,
        _ => Kind::Wrong,
    }
}

fn describe(bytes: &[u8]) -> String {
    if holds(0, 0, bytes) {
        return "zeros".to_owned();
    }
    let first = u64::from_le_bytes(bytes[..8].try_into().unwrap());
    let (value, sector) = (first >> 32, first & 0xffff_ffff);
    let whole = Value::try_from(value)
        .is_ok_and(|value| usize::try_from(sector).is_ok_and(|sector| holds(value, sector, bytes)));
    if whole {
        format!("{value} of sector {sector}")
    } else {
        format!("bytes that begin with {first:#x}")
    }
}

/// Every sector of a disk, or of those sectors of it that one queue uses.
#[derive(Clone)]
pub struct Model {
    /// What a read may give.
    now: Vec<Vec<Value>>,
    /// What may be there after a crash.
    stable: Vec<Vec<Value>>,
    /// Changed since the last flush.
    touched: Vec<usize>,
}

impl Model {
    /// A disk whose sectors hold these values.
    pub fn new(values: &[Value]) -> Self {
        let now: Vec<_> = values.iter().map(|&value| vec![value]).collect();
        Self {
            stable: now.clone(),
            now,
            touched: Vec::new(),
        }
    }

    /// Where there is never a crash, so that nothing is remembered for it.
    pub fn without_crash(values: &[Value]) -> Self {
        Self {
            stable: Vec::new(),
            ..Self::new(values)
        }
    }

    /// A request is on its way that makes sectors hold `value`.
    pub fn begin(&mut self, sectors: Range<usize>, value: Value) {
        for sector in sectors {
            if let Some(stable) = self.stable.get_mut(sector) {
                stable.push(value);
                self.touched.push(sector);
            }
        }
    }

    /// That request has ended well.
    pub fn end(&mut self, sectors: Range<usize>, value: Value) {
        for sector in sectors {
            self.now[sector].clear();
            self.now[sector].push(value);
        }
    }

    /// That request has ended, and may or may not have done what it should.
    pub fn maybe(&mut self, sectors: Range<usize>, value: Value) {
        for sector in sectors {
            if !self.now[sector].contains(&value) {
                self.now[sector].push(value);
            }
        }
    }

    /// A flush has ended, before which nothing was on its way.
    pub fn flushed(&mut self) {
        for sector in self.touched.drain(..) {
            self.stable[sector].clone_from(&self.now[sector]);
        }
    }

    /// What was read is what may be there; from now on it is known. The
    /// sectors that are wrong.
    pub fn faults<'a>(
        &'a mut self,
        sectors: Range<usize>,
        bytes: &'a [u8],
    ) -> impl Iterator<Item = Fault> + 'a {
        let look = |(sector, bytes): (usize, &[u8])| {
            let now = &mut self.now[sector];
            match now.iter().find(|&&value| holds(value, sector, bytes)) {
                Some(&value) => {
                    now.clear();
                    now.push(value);
                    None
                }
                None => Some(Fault {
                    kind: kind(sector, bytes),
                    text: format!("sector {sector} holds {}, not {now:?}", describe(bytes)),
                }),
            }
        };
        sectors.zip(bytes.chunks_exact(SECTOR)).filter_map(look)
    }

    /// How many sectors there are.
    pub fn sectors(&self) -> usize {
        self.now.len()
    }

    /// What a sector may hold now.
    pub fn now(&self, sector: usize) -> &[Value] {
        &self.now[sector]
    }

    /// The sectors that after a crash hold what they cannot.
    pub fn lost(&self, bytes: &[u8]) -> Vec<String> {
        let wrong = |(sector, bytes): (usize, &[u8])| {
            let may = &self.stable[sector];
            let fits = may.iter().any(|&value| holds(value, sector, bytes));
            (!fits).then(|| format!("sector {sector} holds {}, not {may:?}", describe(bytes)))
        };
        bytes
            .chunks_exact(SECTOR)
            .enumerate()
            .filter_map(wrong)
            .collect()
    }
}
