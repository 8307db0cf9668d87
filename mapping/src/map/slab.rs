//! A slab: the extents of one window in one allocation, behind one pointer.
#![allow(unsafe_code)]

use std::alloc::{Layout, alloc, dealloc};
use std::ops::Range;
use std::ptr::NonNull;

use crate::source::extent::{Kind, Packed, Reason};
use crate::sync::{AtomicU8, Ordering};

/// Somebody looked the window up since the clock's hand passed.
pub(crate) const REFERENCED: u8 = 1;
/// Populating ahead reached up to here: ask for more once somebody arrives.
pub(crate) const AHEAD: u8 = 2;
/// A first write has come that would have taken all of the window away, were it not the first since it was loaded.
pub(crate) const SPARED: u8 = 4;
/// Somebody looked the window up since [`Map::cool`](crate::Map::cool) was called: for those who show it.
pub(crate) const WARM: u8 = 8;
/// How often data of the window were found since a first write last came: counted in these bits, up to three times.
pub(crate) const USED: u8 = 0x30;
/// One use.
pub(crate) const USE: u8 = 0x10;

/// The head of a slab; its entries follow it.
#[repr(C)]
pub(crate) struct Slab {
    count: u32,
    /// [`REFERENCED`], [`AHEAD`], [`SPARED`], [`WARM`] and [`USED`].
    pub(crate) flags: AtomicU8,
    /// Some entry is [`Reason::Changing`].
    pub(crate) changing: bool,
    /// When it was loaded, or a first write last came: see [`Shared::stamp`](crate::map::shared::Shared::stamp).
    stamp: u16,
    #[cfg(loom)]
    alive: loom::cell::UnsafeCell<bool>,
    entries: [Packed; 0],
}

/// Bytes a slab of `count` entries takes.
pub(crate) fn bytes_for(count: usize) -> u64 {
    let bytes = size_of::<Slab>().saturating_add(count.saturating_mul(size_of::<Packed>()));
    u64::try_from(bytes).unwrap_or(u64::MAX)
}

fn layout(count: usize) -> Option<Layout> {
    let (layout, _) = Layout::new::<Slab>()
        .extend(Layout::array::<Packed>(count).ok()?)
        .ok()?;
    Some(layout.pad_to_align())
}

/// Owns a slab that is in no table.
pub(crate) struct SlabBox(NonNull<Slab>);

// SAFETY: a slab is plain data and atomics; the box is its only owner.
unsafe impl Send for SlabBox {}

impl SlabBox {
    /// Copies `entries` (sorted, within the window) into a new slab; `None` if memory is short.
    pub(crate) fn new(entries: &[Packed], flags: u8, stamp: u16) -> Option<SlabBox> {
        let count = u32::try_from(entries.len()).ok()?;
        let layout = layout(entries.len())?;
        let changing = entries
            .iter()
            .any(|entry| entry.kind() == Kind::Opaque(Reason::Changing));
        // SAFETY: the layout holds a `Slab`, so its size is not zero.
        let memory = NonNull::new(unsafe { alloc(layout) })?.cast::<Slab>();
        // SAFETY: the allocation is valid for a head followed by `count` entries, suitably aligned for
        // both (`Packed` follows the head without padding, because `entries` is the head's last field and
        // has its alignment), and nobody else knows it yet.
        unsafe {
            memory.as_ptr().write(Slab {
                count,
                flags: AtomicU8::new(flags),
                changing,
                stamp,
                #[cfg(loom)]
                alive: loom::cell::UnsafeCell::new(true),
                entries: [],
            });
            let first = (&raw mut (*memory.as_ptr()).entries).cast::<Packed>();
            first.copy_from_nonoverlapping(entries.as_ptr(), entries.len());
        }
        Some(SlabBox(memory))
    }

    /// Gives the slab away, to a table.
    pub(crate) fn into_raw(self) -> *mut Slab {
        let raw = self.0.as_ptr();
        std::mem::forget(self);
        raw
    }

    /// Takes a slab back; `None` for null.
    ///
    /// # Safety
    /// `raw` came from [`SlabBox::into_raw`], and nobody else owns it.
    pub(crate) unsafe fn from_raw(raw: *mut Slab) -> Option<SlabBox> {
        NonNull::new(raw).map(SlabBox)
    }

    pub(crate) fn view(&self) -> SlabRef<'_> {
        // SAFETY: the box owns the slab, and the reference does not outlive the borrow of the box.
        unsafe { SlabRef::new(self.0) }
    }
}

impl Drop for SlabBox {
    fn drop(&mut self) {
        // Under loom a freed slab stays readable, so that a reader who comes too late is reported rather
        // than crashing the model.
        #[cfg(loom)]
        {
            // SAFETY: the box owns the slab.
            let head = unsafe { self.0.as_ref() };
            // SAFETY: loom reports any access that is not ordered before this one.
            head.alive.with_mut(|alive| unsafe { *alive = false });
        }
        #[cfg(not(loom))]
        if let Some(layout) = layout(self.view().entries().len()) {
            // SAFETY: allocated with the very same layout, owned by the box; atomics need no drop.
            unsafe { dealloc(self.0.as_ptr().cast(), layout) };
        }
        #[cfg(loom)]
        let _ = dealloc;
    }
}

/// A slab that stays alive for `'a`.
#[derive(Clone, Copy)]
pub(crate) struct SlabRef<'a> {
    head: &'a Slab,
    entries: &'a [Packed],
}

impl<'a> SlabRef<'a> {
    /// # Safety
    /// `raw` came from [`SlabBox::into_raw`] (or is owned by a box) and is not freed during `'a`.
    #[inline]
    pub(crate) unsafe fn new(raw: NonNull<Slab>) -> SlabRef<'a> {
        // SAFETY: the head and its `count` entries are initialised and, but for the atomics, never
        // written again while shared; the caller keeps them alive. The pointer to the entries is derived
        // from the pointer to the whole allocation, not from a reference to the head.
        unsafe {
            let head: &Slab = raw.as_ref();
            #[cfg(loom)]
            head.alive
                .with(|alive| assert!(*alive, "a freed slab was read"));
            let first = (&raw const (*raw.as_ptr()).entries).cast::<Packed>();
            let count = usize::try_from(head.count).unwrap_or(0);
            SlabRef {
                head,
                entries: std::slice::from_raw_parts(first, count),
            }
        }
    }

    #[inline]
    pub(crate) fn entries(&self) -> &'a [Packed] {
        self.entries
    }

    #[inline]
    pub(crate) fn flags(&self) -> &'a AtomicU8 {
        &self.head.flags
    }

    pub(crate) fn changing(&self) -> bool {
        self.head.changing
    }

    pub(crate) fn stamp(&self) -> u16 {
        self.head.stamp
    }

    /// Some of `range` (relative to the window) is a hole or was never written.
    pub(crate) fn has_room(&self, range: &Range<u32>) -> bool {
        let first = self
            .entries
            .partition_point(|entry| entry.end() <= range.start);
        let mut at = range.start;
        for entry in &self.entries[first..] {
            if entry.start() > at || at >= range.end {
                break;
            }
            if entry.kind() == Kind::Unwritten {
                return true;
            }
            at = entry.end();
        }
        at < range.end
    }

    /// Some of it is written.
    pub(crate) fn has_data(&self) -> bool {
        self.entries.iter().any(|entry| entry.kind().on_disk())
    }

    pub(crate) fn bytes(&self) -> u64 {
        bytes_for(self.entries.len())
    }

    /// Clears [`REFERENCED`]; whether it was set.
    pub(crate) fn take_referenced(&self) -> bool {
        self.head.flags.fetch_and(!REFERENCED, Ordering::Relaxed) & REFERENCED != 0
    }

    /// [`WARM`] is set.
    pub(crate) fn is_warm(&self) -> bool {
        self.head.flags.load(Ordering::Relaxed) & WARM != 0
    }

    /// Clears [`WARM`].
    pub(crate) fn cool(&self) {
        self.head.flags.fetch_and(!WARM, Ordering::Relaxed);
    }

    /// Extents by kind; what lies between them counts as holes, up to `end` (relative to the window).
    pub(crate) fn tally(&self, end: u32) -> [u64; Kind::COUNT] {
        let mut tally = [0; Kind::COUNT];
        let mut at = 0;
        for entry in self.entries {
            if entry.start() > at {
                tally[Kind::Hole.index()] += 1;
            }
            tally[entry.kind().index()] += 1;
            at = entry.end();
        }
        if at < end {
            tally[Kind::Hole.index()] += 1;
        }
        tally
    }
}

/// The entry that contains `at`, or the place between entries where it lies.
pub(crate) enum Place {
    In(usize),
    /// Before the entry of this index (which may be one past the last).
    Before(usize),
}

/// Finds `at`, trying `hint` and its successor first.
#[inline]
pub(crate) fn find(entries: &[Packed], at: u32, hint: usize) -> Place {
    if let Some(entry) = entries.get(hint) {
        if entry.contains(at) {
            return Place::In(hint);
        }
        if entries.get(hint + 1).is_some_and(|next| next.contains(at)) {
            return Place::In(hint + 1);
        }
    }
    search(entries, at)
}

#[inline]
fn search(entries: &[Packed], at: u32) -> Place {
    let behind = entries.partition_point(|entry| entry.start() <= at);
    match behind.checked_sub(1) {
        Some(index) if entries[index].contains(at) => Place::In(index),
        _ => Place::Before(behind),
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_slab_gives_back_what_it_was_made_of() {
        let entries: Vec<_> = (0..100)
            .map(|i| Packed::new(i * 8, 4, u64::from(i), Kind::Written))
            .collect();
        let slab = SlabBox::new(&entries, 0, 7).unwrap();
        assert_eq!(slab.view().entries(), &entries[..]);
        assert_eq!(slab.view().bytes(), 8 + 1600);
        assert_eq!(slab.view().tally(800), [100, 0, 100, 0, 0]);
        assert_eq!(slab.view().stamp(), 7);
        let raw = slab.into_raw();
        // SAFETY: just given away, owned by nobody else.
        let back = unsafe { SlabBox::from_raw(raw) }.unwrap();
        assert_eq!(back.view().entries().len(), 100);
    }

    #[test]
    fn cooling_leaves_the_clock_its_mark() {
        let slab = SlabBox::new(&[], REFERENCED | WARM | USED, 0).unwrap();
        let slab = slab.view();
        assert!(slab.is_warm());
        slab.cool();
        assert!(!slab.is_warm());
        assert_eq!(slab.flags().load(Ordering::Relaxed), REFERENCED | USED);
        assert!(slab.take_referenced());
    }

    #[test]
    fn room_is_what_was_never_written() {
        let kinds = [
            Kind::Written,
            Kind::Opaque(Reason::Changing),
            Kind::Unwritten,
            Kind::Shared,
        ];
        let place = |at| u32::try_from(at).unwrap() * 8;
        let entries: Vec<_> = kinds
            .iter()
            .enumerate()
            .map(|(at, kind)| Packed::new(place(at), 8, 0, *kind))
            .collect();
        let slab = SlabBox::new(&entries, 0, 0).unwrap();
        let slab = slab.view();
        for start in 0..48 {
            for end in start + 1..49 {
                let expected = (start..end).any(|at| (16..24).contains(&at) || at >= 32);
                assert_eq!(slab.has_room(&(start..end)), expected, "{start}..{end}");
            }
        }
        assert!(slab.has_data());
        let unwritten = SlabBox::new(&entries[1..3], 0, 0).unwrap();
        assert!(!unwritten.view().has_data());
        let nothing = SlabBox::new(&[], 0, 0).unwrap();
        assert!(nothing.view().has_room(&(0..1)) && !nothing.view().has_data());
    }

    #[test]
    fn any_hint_finds_the_same() {
        let entries: Vec<_> = (0..20)
            .map(|i| Packed::new(i * 8 + 2, 4, 0, Kind::Written))
            .collect();
        for at in 0..170 {
            for hint in [0, 1, 5, 19, 20, usize::MAX - 1] {
                match find(&entries, at, hint) {
                    Place::In(index) => assert!(entries[index].contains(at)),
                    Place::Before(index) => {
                        assert!(entries[..index].iter().all(|e| e.end() <= at));
                        assert!(entries[index..].iter().all(|e| e.start() > at));
                    }
                }
            }
        }
    }
}
