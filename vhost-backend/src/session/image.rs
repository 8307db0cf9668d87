//! Whether the image is ours: taken before the first ring starts, given back
//! after the last has stopped, asked for again while somebody else has it.

use std::io;
use std::time::{Duration, Instant};

use crate::status::Awaited;

/// How long to wait before asking again.
const AGAIN: Duration = Duration::from_millis(250);

#[derive(Debug, Default)]
pub(crate) enum Image {
    #[default]
    Free,
    Taken,
    /// Somebody else has it; ask again then.
    Awaited(Instant, Awaited),
}

impl Image {
    /// Takes the image, if it is time to ask for it; whether it is ours.
    pub(crate) fn take(&mut self, ask: impl FnOnce() -> io::Result<()>) -> bool {
        match self {
            Self::Taken => return true,
            Self::Awaited(at, _) if Instant::now() < *at => return false,
            Self::Free | Self::Awaited(..) => {}
        }
        let Err(error) = ask() else {
            if matches!(self, Self::Awaited(..)) {
                log::info!("the image is free now; its rings start");
            }
            *self = Self::Taken;
            return true;
        };
        let again = Instant::now() + AGAIN;
        if let Self::Awaited(at, _) = self {
            *at = again;
            return false;
        }
        // Once: to say who has the image may take a look at all processes.
        let reason = error.to_string();
        log::error!("no ring is started yet, and it is tried again until it works: {reason}");
        let awaited = Awaited {
            since: Instant::now(),
            reason,
        };
        *self = Self::Awaited(again, awaited);
        false
    }

    /// Gives the image back, or stops asking for it.
    pub(crate) fn release(&mut self, give_back: impl FnOnce()) {
        if matches!(std::mem::take(self), Self::Taken) {
            give_back();
        }
    }

    /// When to ask again.
    pub(crate) fn awaited_until(&self) -> Option<Instant> {
        match self {
            Self::Awaited(at, _) => Some(*at),
            Self::Free | Self::Taken => None,
        }
    }

    /// What it is waited for, and since when.
    pub(crate) fn awaited(&self) -> Option<&Awaited> {
        match self {
            Self::Awaited(_, awaited) => Some(awaited),
            Self::Free | Self::Taken => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn busy() -> io::Result<()> {
        Err(io::Error::other("in use"))
    }

    #[test]
    fn a_busy_image_is_asked_for_again_only_later() {
        let mut image = Image::default();
        assert!(!image.take(busy));
        let at = image.awaited_until().unwrap();
        assert!(at > Instant::now());
        assert!(!image.take(|| panic!("too early")));
        let first = image.awaited().unwrap().clone();
        assert_eq!(first.reason, "in use");
        image = Image::Awaited(Instant::now(), first.clone());
        assert!(!image.take(busy));
        assert_eq!(image.awaited(), Some(&first), "since the first time");
        image = Image::Awaited(Instant::now(), first);
        assert!(image.take(|| Ok(())));
        assert!(image.take(|| panic!("it is taken")));
        assert_eq!(image.awaited_until(), None);
    }

    #[test]
    fn only_a_taken_image_is_given_back() {
        let mut image = Image::default();
        image.release(|| panic!("not taken"));
        assert!(!image.take(busy));
        image.release(|| panic!("not taken"));
        assert!(image.take(|| Ok(())));
        let mut given = false;
        image.release(|| given = true);
        assert!(given);
    }
}
