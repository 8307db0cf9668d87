//! Points on the way of a request that tracers can look at (USDT): each is an
//! instruction that does nothing, and a note in the program that says where it
//! is. What a probe tells is what its place has in registers anyway.
//! `packaging/stages.bt` uses all of them.

/// A request was fetched: its queue, and the head of its chain.
#[inline(always)]
pub(crate) fn fetched(queue: u16, head: u16) {
    probe::probe!(extentd, fetched, queue, head);
}

/// What this thread has fetched was given to the kernel: so many requests.
#[inline(always)]
pub(crate) fn submitted(requests: usize) {
    probe::probe!(extentd, submitted, requests);
}

/// The device has ended a request: its queue, and the head of its chain.
#[inline(always)]
pub(crate) fn ended(queue: u16, head: u16) {
    probe::probe!(extentd, ended, queue, head);
}

/// A driver was shown what this thread has answered: so many requests of a
/// queue.
#[inline(always)]
pub(crate) fn published(requests: u16) {
    probe::probe!(extentd, published, requests);
}

/// The driver of a queue was interrupted.
#[inline(always)]
pub(crate) fn interrupted(queue: u16) {
    probe::probe!(extentd, interrupted, queue);
}
