//! Numbers that look random and are the same in each run.

/// xorshift; the state must not be 0.
pub struct Random(pub u64);

impl Random {
    /// One of many sequences; any number names one.
    pub fn seeded(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// A number below `limit`.
    pub fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.number(limit as u64)).unwrap()
    }

    /// As [`below`](Self::below), of 64 bits.
    pub fn number(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}
