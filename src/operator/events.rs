//! The last events, and who is told which of them: one ring for all, of which
//! each subscriber has a place. Who falls behind misses what the ring has no
//! room for, and is told how much.

use std::collections::VecDeque;
use std::os::fd::BorrowedFd;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::host::feed::Listener;
use crate::protocol::events::{EVENT, Event, EventKind, Subscribed, Told};
use crate::protocol::rpc;

/// Events that wait for those who read slowly.
const KEPT: usize = 1024;
/// Events of one writing.
const AT_ONCE: usize = 32;

/// What has happened last.
#[derive(Debug)]
pub(super) struct Events {
    source: Listener<Event>,
    /// In order; numbers may be left out.
    ring: VecDeque<Told>,
    /// The number of the next event.
    next: u64,
}

/// What a client wants to be told.
#[derive(Debug)]
pub(super) struct Subscription {
    /// The first number it was not told yet.
    next: u64,
    lost: u64,
    kinds: Option<Vec<EventKind>>,
}

impl Events {
    pub(super) fn new(source: Listener<Event>) -> Self {
        Self {
            source,
            ring: VecDeque::with_capacity(KEPT),
            next: 1,
        }
    }

    /// Readable while there may be something new.
    pub(super) fn event(&self) -> BorrowedFd<'_> {
        self.source.event()
    }

    /// Takes what is new.
    pub(super) fn gather(&mut self) {
        self.source.silence();
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let now = now.unwrap_or_default().as_millis();
        while let Some(event) = self.source.next() {
            if self.ring.len() >= KEPT {
                self.ring.pop_front();
            }
            self.ring.push_back(Told {
                sequence: self.next,
                lost: 0,
                time_ms: u64::try_from(now).unwrap_or(u64::MAX),
                event,
            });
            self.next = self.next.saturating_add(1);
        }
        // They have numbers as well, so that the gap is seen.
        self.next = self.next.saturating_add(self.source.lost());
    }

    /// From now on these kinds are told; without any, nothing.
    pub(super) fn subscribe(
        &self,
        kinds: Option<Vec<EventKind>>,
    ) -> (Option<Subscription>, Subscribed) {
        let subscribed = Subscribed::new(self.next, kinds.clone());
        let none = kinds.as_ref().is_some_and(Vec::is_empty);
        let subscription = (!none).then_some(Subscription {
            next: self.next,
            lost: 0,
            kinds,
        });
        (subscription, subscribed)
    }

    /// What a subscriber was not told yet, some of it; empty if nothing.
    pub(super) fn news(&self, of: &mut Subscription) -> Vec<u8> {
        let mut lines = Vec::new();
        let mut count = 0;
        // What it knows is passed over by numbers, of which none is larger than its place.
        let from = self.ring.partition_point(|told| told.sequence < of.next);
        for told in self.ring.range(from..) {
            if count >= AT_ONCE {
                break;
            }
            let missed = told.sequence.saturating_sub(of.next);
            of.lost = of.lost.saturating_add(missed);
            of.next = told.sequence.saturating_add(1);
            let wanted = |kinds: &Vec<EventKind>| kinds.contains(&told.event.kind());
            if of.kinds.as_ref().is_none_or(wanted) {
                let lost = std::mem::take(&mut of.lost);
                let told = Told {
                    lost,
                    ..told.clone()
                };
                lines.extend_from_slice(rpc::notification(EVENT, &told).as_bytes());
                lines.push(b'\n');
                count = count.saturating_add(1);
            }
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::host::feed::{Feed, feed};

    fn events() -> (Feed<Event>, Events) {
        let (feed, listener) = feed(2 * KEPT).unwrap();
        (feed, Events::new(listener))
    }

    fn told(events: &Events, of: &mut Subscription) -> Vec<(u64, u64)> {
        let text = String::from_utf8(events.news(of)).unwrap();
        let line = |line| serde_json::from_str::<Value>(line).unwrap()["params"].take();
        let number = |value: &Value| value.as_u64().unwrap();
        text.lines()
            .map(line)
            .map(|told| (number(&told["sequence"]), number(&told["lost"])))
            .collect()
    }

    #[test]
    fn who_subscribes_is_told_what_happens_from_then_on_in_order() {
        let (feed, mut events) = events();
        feed.tell(Event::FrontEndGone {});
        events.gather();
        let (one, subscribed) = events.subscribe(None);
        assert_eq!(subscribed.next_sequence, 2);
        let mut one = one.unwrap();
        assert_eq!(told(&events, &mut one), []);
        for _ in 0..40 {
            feed.tell(Event::LeaseLost {});
        }
        events.gather();
        let first = told(&events, &mut one);
        assert_eq!(first, (2..34).map(|at| (at, 0)).collect::<Vec<_>>());
        assert_eq!(told(&events, &mut one).last(), Some(&(41, 0)));
        assert_eq!(told(&events, &mut one), []);
    }

    #[test]
    fn who_falls_behind_sees_the_gap_and_how_long_it_is() {
        let (feed, mut events) = events();
        let (one, _) = events.subscribe(None);
        let mut one = one.unwrap();
        for _ in 0..KEPT + 7 {
            feed.tell(Event::LeaseLost {});
        }
        events.gather();
        assert_eq!(told(&events, &mut one)[..2], [(8, 7), (9, 0)]);
        // What the one that gathers has missed has numbers as well.
        let before = events.next;
        for _ in 0..2 * KEPT + 3 {
            feed.tell(Event::LeaseLost {});
        }
        events.gather();
        assert_eq!(events.next, before + 2 * 1024 + 3);
        feed.tell(Event::LeaseTaken {});
        events.gather();
        while let Some(last) = told(&events, &mut one).last() {
            if *last == (before + 2 * 1024 + 3, 3) {
                return;
            }
        }
        panic!("the last event does not come");
    }

    #[test]
    fn only_the_kinds_that_were_asked_for_are_told() {
        let (feed, mut events) = events();
        let (one, _) = events.subscribe(Some(vec![EventKind::Resized]));
        let mut one = one.unwrap();
        feed.tell(Event::LeaseLost {});
        feed.tell(Event::Resized { size_bytes: 512 });
        events.gather();
        assert_eq!(told(&events, &mut one), [(2, 0)]);
        assert!(events.subscribe(Some(Vec::new())).0.is_none());
    }
}
