//! What can be limited, and how it is called.

/// What a limit is of: requests per second (`iops`) or bytes per second, of
/// reads, of writes, or of both together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limited {
    /// All requests.
    Iops,
    /// Reads.
    ReadIops,
    /// Whatever is no read.
    WriteIops,
    /// Bytes read and written.
    Bytes,
    /// Bytes read.
    ReadBytes,
    /// Bytes written.
    WriteBytes,
}

/// How many there are.
pub(crate) const KINDS: usize = 6;

impl Limited {
    /// Its place in tables.
    pub(crate) fn index(self) -> usize {
        match self {
            Self::Iops => 0,
            Self::ReadIops => 1,
            Self::WriteIops => 2,
            Self::Bytes => 3,
            Self::ReadBytes => 4,
            Self::WriteBytes => 5,
        }
    }
}

/// One number of a limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LimitKey {
    /// How much per second; 0 is no limit.
    Rate(Limited),
    /// How much at once, after a time in which less was used; 0 is what
    /// [`LEAST_BURST_MS`](super::LEAST_BURST_MS) bring, and never is it less.
    Burst(Limited),
}

/// Keys and their names, in the order in which they are shown.
const KEYS: [(LimitKey, &str); 2 * KINDS] = [
    (LimitKey::Rate(Limited::Iops), "iops"),
    (LimitKey::Rate(Limited::ReadIops), "read-iops"),
    (LimitKey::Rate(Limited::WriteIops), "write-iops"),
    (LimitKey::Rate(Limited::Bytes), "bytes"),
    (LimitKey::Rate(Limited::ReadBytes), "read-bytes"),
    (LimitKey::Rate(Limited::WriteBytes), "write-bytes"),
    (LimitKey::Burst(Limited::Iops), "burst-iops"),
    (LimitKey::Burst(Limited::ReadIops), "burst-read-iops"),
    (LimitKey::Burst(Limited::WriteIops), "burst-write-iops"),
    (LimitKey::Burst(Limited::Bytes), "burst-bytes"),
    (LimitKey::Burst(Limited::ReadBytes), "burst-read-bytes"),
    (LimitKey::Burst(Limited::WriteBytes), "burst-write-bytes"),
];

impl LimitKey {
    /// Each of them.
    pub fn all() -> impl Iterator<Item = Self> {
        KEYS.iter().map(|(key, _)| *key)
    }

    /// As it is typed: `burst-read-iops`.
    #[must_use]
    pub fn name(self) -> &'static str {
        let found = KEYS.iter().find(|(key, _)| *key == self);
        found.map_or("", |(_, name)| name)
    }

    /// The key of that name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        let found = KEYS.iter().find(|(_, known)| *known == name);
        found.map(|(key, _)| *key)
    }

    /// What it is of.
    #[must_use]
    pub fn limited(self) -> Limited {
        match self {
            Self::Rate(of) | Self::Burst(of) => of,
        }
    }

    /// It counts bytes, not requests.
    #[must_use]
    pub fn is_bytes(self) -> bool {
        self.limited().index() >= Limited::Bytes.index()
    }
}

/// The numbers of all keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LimitValues {
    rates: [u64; KINDS],
    bursts: [u64; KINDS],
}

impl LimitValues {
    /// The number of a key; 0 where there is none.
    #[must_use]
    pub fn get(&self, key: LimitKey) -> u64 {
        let (table, of) = match key {
            LimitKey::Rate(of) => (&self.rates, of),
            LimitKey::Burst(of) => (&self.bursts, of),
        };
        table.get(of.index()).copied().unwrap_or(0)
    }

    /// Gives a key this number.
    pub fn set(&mut self, key: LimitKey, value: u64) {
        let (table, of) = match key {
            LimitKey::Rate(of) => (&mut self.rates, of),
            LimitKey::Burst(of) => (&mut self.bursts, of),
        };
        if let Some(place) = table.get_mut(of.index()) {
            *place = value;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_found_by_their_names_and_keep_their_own_numbers() {
        let mut values = LimitValues::default();
        for (key, number) in LimitKey::all().zip(1..) {
            assert_eq!(LimitKey::named(key.name()), Some(key));
            assert_eq!(key.is_bytes(), key.name().ends_with("bytes"));
            values.set(key, number);
        }
        for (key, number) in LimitKey::all().zip(1..) {
            assert_eq!(values.get(key), number, "{key:?}");
        }
        assert_eq!(LimitKey::all().count(), 2 * KINDS);
        assert_eq!(LimitKey::named("iops-total"), None);
    }
}
