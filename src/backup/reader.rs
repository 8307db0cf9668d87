//! Reads a backup, of which nothing is believed: each number is looked at
//! before anything is done with it, and memory is taken for one record only.

use std::io::{self, Read};
use std::ops::Range;
use std::path::{Path, PathBuf};

use super::error::BackupError;
use super::format::{CHUNK, HEAD_BYTES, Head, Kind, RECORD_BYTES, Record, Whole, Wrong, sum};

/// What a record says.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Item<'a> {
    /// These bytes are at this offset.
    Data(u64, &'a [u8]),
    /// Zeros are there.
    Zeros(Range<u64>),
}

/// A backup that is being read.
#[derive(Debug)]
pub(super) struct Reader<R> {
    input: R,
    path: PathBuf,
    head: Head,
    whole: Whole,
    /// The end of the last record.
    at: u64,
    data: Vec<u8>,
}

impl<R: Read> Reader<R> {
    /// Reads the head; `None` where there is nothing at all. `path` is named in
    /// errors.
    ///
    /// # Errors
    /// That is no backup, or it cannot be read.
    pub(super) fn begin(mut input: R, path: &Path) -> Result<Option<Self>, BackupError> {
        let mut bytes = [0; HEAD_BYTES];
        let mut got = 0;
        while let Some(rest) = bytes.get_mut(got..).filter(|rest| !rest.is_empty()) {
            match input.read(rest) {
                Ok(0) if got == 0 => return Ok(None),
                Ok(0) => return Err(damaged(path, "it ends within its head")),
                Ok(count) => got += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(unread(path, error)),
            }
        }
        let head = Head::parse(&bytes).map_err(|wrong| match wrong {
            Wrong::Damaged(why) => damaged(path, why),
            Wrong::Version(version) => BackupError::Version(path.to_owned(), version),
        })?;
        Ok(Some(Self {
            input,
            path: path.to_owned(),
            head,
            whole: Whole::new(&bytes),
            at: 0,
            data: Vec::new(),
        }))
    }

    pub(super) fn head(&self) -> &Head {
        &self.head
    }

    pub(super) fn into_input(self) -> R {
        self.input
    }

    /// The next record; `None` after the last one, when all sums are right.
    ///
    /// # Errors
    /// It is not as it was written, or cannot be read.
    pub(super) fn next(&mut self) -> Result<Option<Item<'_>>, BackupError> {
        let mut bytes = [0; RECORD_BYTES];
        receive(&mut self.input, &mut bytes, &self.path)?;
        let damaged = |why| damaged(&self.path, why);
        let record = Record::parse(&bytes).ok_or_else(|| damaged("a record is of no kind"))?;
        if record.kind == Kind::End {
            return if record == self.whole.end() {
                Ok(None)
            } else {
                Err(damaged("its sum is wrong at the end"))
            };
        }
        let end = record.start.checked_add(record.len);
        let end = end.filter(|end| *end <= self.head.size);
        let end = end.ok_or_else(|| damaged("a record is not within the disk"))?;
        if record.start < self.at || record.len == 0 {
            return Err(damaged("its records are not in order"));
        }
        self.at = end;
        self.whole.add(&record);
        if record.kind == Kind::Zeros {
            return if record.sum == [0; 32] {
                Ok(Some(Item::Zeros(record.start..end)))
            } else {
                Err(damaged("a record of zeros has a sum"))
            };
        }
        let length = usize::try_from(record.len).ok();
        let length = length.filter(|length| *length <= CHUNK);
        let length = length.ok_or_else(|| damaged("a record is too long"))?;
        self.data.resize(length, 0);
        receive(&mut self.input, &mut self.data, &self.path)?;
        if sum(&self.data) != record.sum {
            return Err(damaged("the sum of a record is wrong"));
        }
        Ok(Some(Item::Data(record.start, &self.data)))
    }

    /// That nothing is behind the end of a file.
    ///
    /// # Errors
    /// There is something.
    pub(super) fn ends(mut self) -> Result<(), BackupError> {
        match self.input.read(&mut [0]) {
            Ok(0) => Ok(()),
            Ok(_) => Err(damaged(&self.path, "something is behind its end")),
            Err(error) => Err(unread(&self.path, error)),
        }
    }
}

fn receive(input: &mut impl Read, into: &mut [u8], path: &Path) -> Result<(), BackupError> {
    input.read_exact(into).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => damaged(path, "it was cut off"),
        _ => unread(path, error),
    })
}

fn damaged(path: &Path, why: &str) -> BackupError {
    BackupError::Damaged(path.to_owned(), why.to_owned())
}

fn unread(path: &Path, error: io::Error) -> BackupError {
    BackupError::host(path, "read it")(error)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::format::Id;
    use super::*;

    const SIZE: u64 = 1 << 21;

    fn head() -> Head {
        Head {
            name: "a".to_owned(),
            size: SIZE,
            written: 5,
            id: Id([1; 32]),
            base: None,
        }
    }

    fn record(kind: Kind, start: u64, len: u64, data: &[u8]) -> Record {
        let sum = if kind == Kind::Data {
            sum(data)
        } else {
            [0; 32]
        };
        Record {
            kind,
            start,
            len,
            sum,
        }
    }

    /// With an end that is right for these records.
    fn written(records: &[(Record, &[u8])]) -> Vec<u8> {
        let head = head().to_bytes();
        let mut whole = Whole::new(&head);
        let mut all = head.to_vec();
        for (record, data) in records {
            whole.add(record);
            all.extend(record.to_bytes());
            all.extend(*data);
        }
        all.extend(whole.end().to_bytes());
        all
    }

    /// Where each record begins, and its data.
    type Told = Vec<(u64, Option<Vec<u8>>)>;

    fn read(bytes: &[u8]) -> Result<Told, String> {
        let told = |error: BackupError| error.to_string();
        let reader = Reader::begin(bytes, Path::new("f")).map_err(told)?;
        let mut reader = reader.ok_or("nothing")?;
        let mut all = Vec::new();
        while let Some(item) = reader.next().map_err(told)? {
            all.push(match item {
                Item::Data(start, data) => (start, Some(data.to_vec())),
                Item::Zeros(range) => (range.start, None),
            });
        }
        reader.ends().map_err(told)?;
        Ok(all)
    }

    fn good() -> Vec<u8> {
        let data = [7; 512];
        written(&[
            (record(Kind::Data, 512, 512, &data), &data),
            (record(Kind::Zeros, 4096, 8192, &[]), &[]),
        ])
    }

    #[test]
    fn what_was_written_is_read_and_half_of_it_is_not() {
        let all = good();
        let expected = vec![(512, Some(vec![7; 512])), (4096, None)];
        assert_eq!(read(&all), Ok(expected));
        assert_eq!(read(&[]), Err("nothing".to_owned()));
        for end in 1..all.len() {
            let said = read(&all[..end]).unwrap_err();
            assert!(
                said.contains("ends within") || said.contains("cut off"),
                "{said}"
            );
        }
        let said = read(&[&all[..], &[0]].concat()).unwrap_err();
        assert!(said.contains("behind its end"), "{said}");
    }

    #[test]
    fn records_that_lie_are_refused_though_all_sums_are_right() {
        let data = [7; 512];
        let long = vec![1; CHUNK + 1];
        for (records, says) in [
            (
                vec![(record(Kind::Zeros, SIZE, 1, &[]), &[][..])],
                "not within",
            ),
            (
                vec![(record(Kind::Zeros, u64::MAX, 2, &[]), &[])],
                "not within",
            ),
            (
                vec![(record(Kind::Data, SIZE - 1, 512, &data), &data[..])],
                "not within",
            ),
            (vec![(record(Kind::Zeros, 5, 0, &[]), &[])], "not in order"),
            (
                vec![(record(Kind::Data, 0, CHUNK as u64 + 1, &long), &long[..])],
                "too long",
            ),
            (
                vec![(
                    Record {
                        sum: [1; 32],
                        ..record(Kind::Zeros, 5, 5, &[])
                    },
                    &[],
                )],
                "has a sum",
            ),
            (
                vec![
                    (record(Kind::Zeros, 4096, 8192, &[]), &[]),
                    (record(Kind::Data, 4096 + 8191, 512, &data), &data),
                ],
                "not in order",
            ),
        ] {
            let said = read(&written(&records)).unwrap_err();
            assert!(said.contains(says), "{said}");
        }
    }

    proptest! {
        #[test]
        fn no_changed_bit_is_missed(at in 0..good().len(), bit in 0..8u8) {
            let mut all = good();
            all[at] ^= 1 << bit;
            prop_assert!(read(&all).is_err());
        }
    }
}
