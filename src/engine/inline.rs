//! Operations that the worker carries out itself, on devices that the kernel
//! would hand to threads of its own.
//!
//! Each takes the worker's time, so only some are carried out at a time: small
//! ones, or as much of the large ones as takes no longer than a few small ones,
//! in turns where there are both. A guest that refills what it has trimmed so
//! holds up nobody's read, and what has ended is shown before the rest is begun.
#![allow(unsafe_code)]

use std::collections::VecDeque;

use mapping::path::Permit;

use super::{Files, Work, sync};

/// Bytes of the largest operation that is a small one.
const SMALL: u64 = 16 << 10;
/// Small operations at a time.
const AT_A_TIME: usize = 32;
/// No more is begun after so many bytes.
const BYTES: u64 = 64 << 10;

/// Operations that wait for their turn.
#[derive(Debug)]
pub(super) struct Inline {
    small: VecDeque<(u32, Work)>,
    large: VecDeque<(u32, Work)>,
    /// Small ones were carried out last.
    was_small: bool,
}

impl Inline {
    /// Room for `depth` operations.
    pub(super) fn new(depth: usize) -> Self {
        Self {
            small: VecDeque::with_capacity(depth),
            large: VecDeque::with_capacity(depth),
            was_small: false,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.small.is_empty() && self.large.is_empty()
    }

    /// Takes an operation.
    ///
    /// # Safety
    /// As for [`Engine::push`](super::Engine::push).
    pub(super) unsafe fn push(&mut self, token: u32, work: Work) {
        let line = if work.bytes() <= SMALL {
            &mut self.small
        } else {
            &mut self.large
        };
        line.push_back((token, work));
    }

    /// Carries some out; those of the device each by a permit of `may`.
    pub(super) fn run(
        &mut self,
        files: &Files,
        may: &mut impl FnMut() -> Option<Permit>,
        ended: &mut Vec<(u32, i32)>,
    ) {
        let small = !self.small.is_empty() && (!self.was_small || self.large.is_empty());
        self.was_small = small;
        let (line, most) = if small {
            (&mut self.small, AT_A_TIME)
        } else {
            (&mut self.large, usize::MAX)
        };
        let mut bytes = 0;
        for _ in 0..most {
            if bytes >= BYTES {
                break;
            }
            let Some((token, work)) = line.pop_front() else {
                break;
            };
            if !small {
                bytes += work.bytes();
            }
            // SAFETY: whoever pushed it keeps the vector valid until its
            // result was given, which is after this call.
            let result = unsafe {
                if work.is_raw() {
                    sync::permitted(files, work, may)
                } else {
                    sync::result_of(files, work)
                }
            };
            ended.push((token, result));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use super::*;
    use crate::engine::manner::Manner;
    use crate::engine::{Target, Vector};

    /// The order in which reads of these lengths are carried out, by turns.
    fn turns(lengths: &[u64]) -> Vec<Vec<usize>> {
        let file = tempfile::tempfile().unwrap();
        file.set_len(8 << 20).unwrap();
        let files = Files {
            image: file.as_raw_fd(),
            image_manner: Manner::Inline,
            device: None,
            device_manner: Manner::Queued,
            tail: None,
            keeper: None,
        };
        let mut room = vec![0; 1 << 20];
        let entries: Vec<_> = lengths
            .iter()
            .map(|&length| libc::iovec {
                iov_base: room.as_mut_ptr().cast(),
                iov_len: usize::try_from(length).unwrap(),
            })
            .collect();
        let mut inline = Inline::new(lengths.len());
        for (token, entry) in (0..).zip(&entries) {
            let vector = Vector {
                iov: &raw const *entry,
                count: 1,
                offset: 0,
                bytes: entry.iov_len as u64,
            };
            // SAFETY: entries and room outlive the loop below.
            unsafe { inline.push(token, Work::Read(Target::Image, vector)) };
        }
        let mut turns = Vec::new();
        while !inline.is_empty() {
            let mut ended = Vec::new();
            inline.run(&files, &mut || Some(Permit::unconditional()), &mut ended);
            for &(token, moved) in &ended {
                assert_eq!(moved, i32::try_from(lengths[token as usize]).unwrap());
            }
            turns.push(ended.iter().map(|&(token, _)| token as usize).collect());
        }
        turns
    }

    #[test]
    fn small_ones_go_first_and_large_ones_in_small_helpings() {
        const LARGE: u64 = 128 << 10;
        assert_eq!(
            turns(&[LARGE, LARGE, 4096, 512]),
            [vec![2, 3], vec![0], vec![1]]
        );
        // Several that are not so large share a turn.
        assert_eq!(turns(&[32 << 10; 3]), [vec![0, 1], vec![2]]);
    }

    #[test]
    fn neither_starves_the_other() {
        let mut lengths = vec![4096; 2 * AT_A_TIME];
        lengths.push(128 << 10);
        let turns = turns(&lengths);
        assert_eq!(turns.len(), 3);
        assert_eq!(turns[0].len(), AT_A_TIME);
        assert_eq!(turns[1], [2 * AT_A_TIME]);
    }
}
