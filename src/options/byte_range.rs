//! Ranges of the disk as people write them.

use std::ops::Range;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::options::size;

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
        "'{0}' is not a range: give all, START..END or START+LENGTH, in bytes or with K, M, G or T"
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

/// A range from `all`, `1G..2G`, `1G..` (to the end), `..1G` or `1G+64M`.
///
/// # Errors
/// It is something else, or empty.
pub fn parse(text: &str) -> Result<ByteRange, RangeError> {
    if text == "all" {
        return Ok(ByteRange::ALL);
    }
    let bound = |text: &str| match text {
        "" => Ok(None),
        size => size::parse(size).map(Some),
    };
    let (start, end) = if let Some((start, end)) = text.split_once("..") {
        if start.is_empty() && end.is_empty() {
            return Err(RangeError::Form(text.to_owned()));
        }
        (bound(start)?.unwrap_or(0), bound(end)?)
    } else if let Some((start, len)) = text.split_once('+') {
        let (start, len) = (size::parse(start)?, size::parse(len)?);
        let end = start.checked_add(len);
        (
            start,
            Some(end.ok_or_else(|| RangeError::Form(text.to_owned()))?),
        )
    } else {
        return Err(RangeError::Form(text.to_owned()));
    };
    if end.is_some_and(|end| end <= start) {
        return Err(RangeError::Empty(text.to_owned()));
    }
    Ok(ByteRange { start, end })
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
        ] {
            assert_eq!(parse(text), Ok(expected), "{text}");
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
