//! Ranges of the disk as people write them.

use std::ops::Range;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::options::size;

/// What `s` stands for, in bytes.
const SECTOR: u64 = 512;

/// A range of the disk in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ByteRange {
    /// The first byte.
    pub start: u64,
    /// Behind the last byte; `None`: the end of the disk.
    pub end: Option<u64>,
}

/// Why a text is no range.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RangeError {
    /// Not one of the forms.
    #[error(
        "'{0}' is not a range: give all, START..END or START+LENGTH, in bytes, with K, M, G or T, in sectors (s) or percent (%)"
    )]
    Form(String),
    /// One of the numbers.
    #[error("{0}")]
    Size(#[from] size::SizeError),
    /// No byte lies in it.
    #[error("'{0}' is empty: its end must lie behind its start")]
    Empty(String),
    /// Not all of it is there.
    #[error("the range ends at byte {end}, but the disk has {size} bytes")]
    BeyondEnd {
        /// Where the range ends.
        end: u64,
        /// Bytes of the disk.
        size: u64,
    },
    /// None of it is there.
    #[error("the range begins at byte {start}, but the disk has {size} bytes")]
    BeyondStart {
        /// Where the range begins.
        start: u64,
        /// Bytes of the disk.
        size: u64,
    },
    /// It ends before it begins.
    #[error("the range from byte {0} to byte {1} is empty")]
    Nothing(u64, u64),
}

impl ByteRange {
    /// The whole disk.
    pub const ALL: ByteRange = ByteRange {
        start: 0,
        end: None,
    };

    /// The range of a disk of `size` bytes.
    ///
    /// # Errors
    /// It is empty or reaches beyond the end.
    pub(crate) fn of(self, size: u64) -> Result<Range<u64>, RangeError> {
        let end = self.end.unwrap_or(size);
        if end > size {
            return Err(RangeError::BeyondEnd { end, size });
        }
        if self.end.is_none() && self.start >= size {
            let start = self.start;
            return Err(RangeError::BeyondStart { start, size });
        }
        if self.start >= end {
            return Err(RangeError::Nothing(self.start, end));
        }
        Ok(self.start..end)
    }
}

/// A place on the disk as it is typed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Bound {
    Bytes(u64),
    /// Of the disk, in hundredths of a percent.
    Share(u32),
}

/// Where a range ends, as it is typed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    OfDisk,
    At(Bound),
    After(Bound),
}

/// A range as it is typed, which may have to know how large the disk is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TypedRange {
    text: String,
    start: Bound,
    end: End,
}

/// All of the disk, in hundredths of a percent.
const WHOLE: u32 = 10_000;

impl Bound {
    fn parse(text: &str) -> Result<Self, RangeError> {
        let form = || RangeError::Form(text.to_owned());
        if let Some(number) = text.strip_suffix('%') {
            let (whole, rest) = number.split_once('.').unwrap_or((number, "0"));
            let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
            if !digits(whole) || !digits(rest) || rest.is_empty() || rest.len() > 2 {
                return Err(form());
            }
            let whole: u32 = whole.parse().map_err(|_| form())?;
            let hundredths: u32 = format!("{rest:0<2}").parse().map_err(|_| form())?;
            return whole
                .checked_mul(100)
                .and_then(|share| share.checked_add(hundredths))
                .filter(|share| *share <= WHOLE)
                .map(Bound::Share)
                .ok_or_else(form);
        }
        if let Some(sectors) = text.strip_suffix('s') {
            let bytes = size::parse(sectors)?.checked_mul(SECTOR);
            return bytes.map(Bound::Bytes).ok_or_else(form);
        }
        Ok(Bound::Bytes(size::parse(text)?))
    }

    fn bytes(self, size: Option<u64>) -> Option<u64> {
        match (self, size) {
            (Bound::Bytes(bytes), _) => Some(bytes),
            (Bound::Share(WHOLE), size) => size,
            (Bound::Share(share), Some(size)) => {
                let bytes = u128::from(size).saturating_mul(share.into());
                let bytes = bytes.checked_div(WHOLE.into()).unwrap_or(bytes);
                let bytes = u64::try_from(bytes).unwrap_or(size);
                Some((bytes / SECTOR).saturating_mul(SECTOR))
            }
            (Bound::Share(_), None) => None,
        }
    }
}

impl TypedRange {
    /// The whole disk.
    pub fn all() -> Self {
        Self {
            text: "all".to_owned(),
            start: Bound::Bytes(0),
            end: End::OfDisk,
        }
    }

    /// In bytes, if the size of the disk need not be known for that.
    ///
    /// # Errors
    /// No byte lies in it.
    pub fn fixed(&self) -> Result<Option<ByteRange>, RangeError> {
        self.resolve(None)
    }

    /// In bytes of a disk of `size` bytes; shares of it are rounded down to
    /// sectors.
    ///
    /// # Errors
    /// No byte lies in it.
    pub fn of(&self, size: u64) -> Result<ByteRange, RangeError> {
        let empty = || RangeError::Empty(self.text.clone());
        self.resolve(Some(size))?.ok_or_else(empty)
    }

    fn resolve(&self, size: Option<u64>) -> Result<Option<ByteRange>, RangeError> {
        let Some(start) = self.start.bytes(size) else {
            return Ok(None);
        };
        let end = match self.end {
            End::OfDisk => None,
            End::At(bound) => match bound.bytes(size) {
                None => return Ok(None),
                end => end,
            },
            End::After(length) => match length.bytes(size) {
                None => return Ok(None),
                Some(length) => {
                    let end = start.checked_add(length);
                    Some(end.ok_or_else(|| RangeError::Form(self.text.clone()))?)
                }
            },
        };
        if end.is_some_and(|end| end <= start) {
            return Err(RangeError::Empty(self.text.clone()));
        }
        Ok(Some(ByteRange { start, end }))
    }
}

/// A range from `all`, `1G..2G`, `1G..` (to the end), `..1G` or `1G+64M`;
/// numbers are bytes, with K, M, G or T powers of 1024 of them, with s sectors
/// of 512 bytes, with % shares of the disk.
///
/// # Errors
/// It is something else, or empty.
pub fn parse(text: &str) -> Result<TypedRange, RangeError> {
    if text == "all" {
        return Ok(TypedRange::all());
    }
    let form = || RangeError::Form(text.to_owned());
    let (start, end) = if let Some((start, end)) = text.split_once("..") {
        if start.is_empty() && end.is_empty() {
            return Err(form());
        }
        let start = match start {
            "" => Bound::Bytes(0),
            start => Bound::parse(start)?,
        };
        let end = match end {
            "" => End::OfDisk,
            end => End::At(Bound::parse(end)?),
        };
        (start, end)
    } else if let Some((start, len)) = text.split_once('+') {
        (Bound::parse(start)?, End::After(Bound::parse(len)?))
    } else {
        return Err(form());
    };
    let text = text.to_owned();
    let range = TypedRange { text, start, end };
    range.fixed()?;
    Ok(range)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(start: u64, end: impl Into<Option<u64>>) -> ByteRange {
        let end = end.into();
        ByteRange { start, end }
    }

    #[test]
    fn every_form_is_understood() {
        for (text, expected) in [
            ("all", ByteRange::ALL),
            ("0..4096", range(0, 4096)),
            ("1M..1G", range(1 << 20, 1 << 30)),
            ("1GiB..2T", range(1 << 30, 2 << 40)),
            ("64K..", range(64 << 10, None)),
            ("..64k", range(0, 64 << 10)),
            ("0+1", range(0, 1)),
            ("1G+64M", range(1 << 30, (1 << 30) + (64 << 20))),
            ("2048s..4096s", range(1 << 20, 2 << 20)),
            ("1M+2s", range(1 << 20, (1 << 20) + 1024)),
        ] {
            let typed = parse(text).unwrap();
            assert_eq!(typed.fixed(), Ok(Some(expected)), "{text}");
            assert_eq!(typed.of(1 << 40), Ok(expected), "{text}");
        }
    }

    #[test]
    fn shares_are_of_the_disk() {
        let size = 1_000_448;
        for (text, expected) in [
            ("0%..100%", range(0, size)),
            ("50%..", range(500_224, None)),
            ("..12.5%", range(0, 124_928)),
            ("10%+10%", range(99_840, 199_680)),
            ("4K..0.6%", range(4096, 5632)),
            ("4096+100%", range(4096, 4096 + size)),
        ] {
            let typed = parse(text).unwrap();
            assert_eq!(typed.fixed(), Ok(None), "{text}");
            assert_eq!(typed.of(size), Ok(expected), "{text}");
        }
        let late = parse("1M..50%").unwrap();
        assert_eq!(late.of(size), Err(RangeError::Empty("1M..50%".to_owned())));
        for text in [
            "101%..",
            "%..",
            "1.234%..",
            "-1%..",
            "1%%..",
            "100.01%..",
            "1.%..",
        ] {
            assert!(matches!(parse(text), Err(RangeError::Form(_))), "{text}");
        }
    }

    #[test]
    fn anything_else_is_refused_with_the_reason() {
        for text in ["", "..", "1G", "All", "1G-2G", "18446744073709551615+1"] {
            assert_eq!(parse(text), Err(RangeError::Form(text.to_owned())));
        }
        for text in ["1X..2X", "1..2..3", "+", "+4K", "4K+", "1G..-1"] {
            assert!(
                matches!(parse(text), Err(RangeError::Size(_))),
                "{text}: {:?}",
                parse(text)
            );
        }
        for text in ["1G..1G", "2G..1G", "4K+0", "..0"] {
            assert_eq!(parse(text), Err(RangeError::Empty(text.to_owned())));
        }
    }

    #[test]
    fn a_range_must_lie_within_the_disk() {
        assert_eq!(ByteRange::ALL.of(4096), Ok(0..4096));
        assert_eq!(range(512, None).of(4096), Ok(512..4096));
        assert_eq!(range(512, 4096).of(4096), Ok(512..4096));
        assert_eq!(
            range(512, 4097).of(4096),
            Err(RangeError::BeyondEnd {
                end: 4097,
                size: 4096
            })
        );
        assert_eq!(
            range(4096, None).of(4096),
            Err(RangeError::BeyondStart {
                start: 4096,
                size: 4096
            })
        );
        assert_eq!(
            range(9, 8).of(4096),
            Err(RangeError::Nothing(9, 8)),
            "from another client"
        );
    }
}
