//! Recognising sequential streams among the windows that are asked for.

use std::ops::Range;

/// How a range is going to be used, as far as the user said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Nothing is known: streams are recognised as they come.
    Normal,
    /// In order: populate far ahead from the first use.
    Sequential,
    /// Without order: never populate ahead.
    Random,
}

const STREAMS: usize = 16;
/// Windows ahead of a stream that was recognised just now, and of one announced by advice.
const FIRST: usize = 2;
const FIRST_ADVISED: usize = 16;

#[derive(Clone, Copy, Debug)]
struct Stream {
    /// The newest window known to be used.
    last: usize,
    /// The first window not asked for yet.
    next: usize,
    /// How many windows were asked for last time.
    ahead: usize,
    used: u64,
}

/// The streams seen last.
#[derive(Debug, Default)]
pub(crate) struct Streams {
    streams: Vec<Stream>,
    clock: u64,
}

impl Streams {
    /// A window is used: which ones to load behind it, at most `most`.
    pub(crate) fn used(&mut self, window: usize, access: Access, most: usize) -> Range<usize> {
        if access == Access::Random {
            return 0..0;
        }
        self.clock += 1;
        let known = self
            .streams
            .iter_mut()
            .find(|stream| (stream.last..=stream.next).contains(&window));
        let stream = match known {
            Some(stream) => {
                let moved = window > stream.last;
                stream.last = window;
                stream.used = self.clock;
                if !moved {
                    return 0..0;
                }
                stream.ahead = (stream.ahead * 2).max(FIRST).min(most);
                stream
            }
            None => {
                let ahead = if access == Access::Sequential {
                    FIRST_ADVISED.min(most)
                } else {
                    0
                };
                let new = Stream {
                    last: window,
                    next: window + 1,
                    ahead,
                    used: self.clock,
                };
                self.insert(new)
            }
        };
        let start = stream.next.max(window + 1);
        stream.next = start + stream.ahead;
        start..stream.next
    }

    fn insert(&mut self, new: Stream) -> &mut Stream {
        let oldest = (0..self.streams.len()).min_by_key(|&at| self.streams[at].used);
        let at = match oldest {
            Some(oldest) if self.streams.len() >= STREAMS => oldest,
            _ => {
                self.streams.push(new);
                self.streams.len() - 1
            }
        };
        self.streams[at] = new;
        &mut self.streams[at]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_is_recognised_at_its_second_window_and_grows() {
        let mut streams = Streams::default();
        assert_eq!(streams.used(10, Access::Normal, 64), 11..11);
        assert_eq!(streams.used(11, Access::Normal, 64), 12..14);
        assert_eq!(streams.used(12, Access::Normal, 64), 14..18);
        assert_eq!(streams.used(14, Access::Normal, 64), 18..26);
        for _ in 0..10 {
            let next = streams.streams[0].next;
            assert!(streams.used(next, Access::Normal, 64).len() <= 64);
        }
    }

    #[test]
    fn several_streams_grow_side_by_side() {
        let mut streams = Streams::default();
        for start in [0, 1000, 2000, 3000] {
            streams.used(start, Access::Normal, 64);
        }
        for start in [0, 1000, 2000, 3000] {
            assert_eq!(
                streams.used(start + 1, Access::Normal, 64),
                start + 2..start + 4
            );
        }
        for start in [3000, 0, 2000, 1000] {
            assert_eq!(
                streams.used(start + 2, Access::Normal, 64),
                start + 4..start + 8
            );
        }
    }

    #[test]
    fn scattered_windows_load_nothing_ahead() {
        let mut streams = Streams::default();
        for step in 0..1000usize {
            assert!(
                streams
                    .used((step * 7919) % 100_003 * 3, Access::Normal, 64)
                    .is_empty()
            );
        }
        assert!(streams.streams.len() <= STREAMS);
    }

    #[test]
    fn advice_overrides_what_is_recognised() {
        let mut streams = Streams::default();
        assert_eq!(streams.used(5, Access::Sequential, 64), 6..22);
        assert!(streams.used(100, Access::Random, 64).is_empty());
        assert!(streams.used(101, Access::Random, 64).is_empty());
    }

    #[test]
    fn a_small_limit_is_kept() {
        let mut streams = Streams::default();
        assert_eq!(streams.used(0, Access::Sequential, 1), 1..2);
        assert_eq!(streams.used(1, Access::Normal, 1), 2..3);
    }
}
