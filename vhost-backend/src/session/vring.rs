//! What the front-end has told about one ring, and whether that is enough to
//! start it. Messages come in any order (VU-18).
#![cfg_attr(
    not(test),
    deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)
)]

use std::io;

use vmm_sys_util::eventfd::EventFd;

use crate::command::{PartBytes, RingAddresses, RingSetup};
use crate::error::Refusal;
use crate::memory::Memory;
use crate::memory::inflight::Region;

/// How the guest's driver wakes the worker.
#[derive(Debug, Default)]
pub(crate) enum Kick {
    /// No SET_VRING_KICK since the ring was stopped: it does not start.
    #[default]
    Missing,
    /// The front-end asked for polling (VU-12).
    Poll,
    Fd(EventFd),
}

impl Kick {
    pub(crate) fn new(fd: Option<EventFd>) -> Self {
        fd.map_or(Self::Poll, Self::Fd)
    }

    /// A descriptor for the worker; `None` for polling.
    pub(crate) fn for_worker(&self) -> io::Result<Option<EventFd>> {
        match self {
            Self::Fd(fd) => fd.try_clone().map(Some),
            Self::Missing | Self::Poll => Ok(None),
        }
    }
}

/// One ring. It is started once its size, addresses and kick are known and it
/// is enabled; from then on enabling is independent of running (VU-9).
#[derive(Debug, Default)]
pub(crate) struct Vring {
    pub size: Option<u16>,
    /// In the front-end's address space.
    pub user: Option<RingAddresses>,
    /// Where the front-end wants writes to the used ring logged
    /// (`VHOST_VRING_F_LOG`).
    pub used_log: Option<u64>,
    /// The next avail index, while the ring is stopped (VU-16).
    pub base: u16,
    pub kick: Kick,
    pub enabled: bool,
    /// Where it is served; `None` while it is stopped.
    pub running: Option<RingAddresses>,
}

impl Vring {
    /// Of the ring, as far as it is known.
    pub(crate) fn entries(&self) -> usize {
        self.size.map_or(0, usize::from)
    }

    /// Everything that starts a ring is there, save perhaps the memory.
    pub(crate) fn is_ready(&self) -> bool {
        let kicked = !matches!(self.kick, Kick::Missing);
        self.running.is_none()
            && self.enabled
            && kicked
            && self.size.is_some()
            && self.user.is_some()
    }

    /// The worker's orders, once [`is_ready`](Self::is_ready).
    pub(crate) fn setup(
        &self,
        memory: &Memory,
        event_idx: bool,
        inflight: Option<Region>,
    ) -> Result<RingSetup, Refusal> {
        let (Some(size), Some(user)) = (self.size, self.user) else {
            return Err(Refusal::RingOutside);
        };
        Ok(RingSetup {
            size,
            addresses: translate(user, size, memory)?,
            next_avail: self.base,
            inflight,
            used_log: self.used_log,
            event_idx,
            kick: self.kick.for_worker().map_err(Refusal::Host)?,
            enabled: self.enabled,
        })
    }

    /// The worker has stopped it. It starts again with the next kick, as it
    /// did the first time (VU-14).
    pub(crate) fn stopped(&mut self, next_avail: Option<u16>) {
        self.running = None;
        self.kick = Kick::Missing;
        self.base = next_avail.unwrap_or(self.base);
    }

    /// A running ring lies in this memory, and where it did before.
    pub(crate) fn stays_in(&self, memory: &Memory) -> bool {
        let (Some(running), Some(size), Some(user)) = (self.running, self.size, self.user) else {
            return true;
        };
        translate(user, size, memory).is_ok_and(|addresses| addresses == running)
    }
}

/// Where a ring lies in guest memory: aligned, and each part in one region
/// (RING-2, VU-17).
pub(crate) fn translate(
    user: RingAddresses,
    size: u16,
    memory: &Memory,
) -> Result<RingAddresses, Refusal> {
    let bytes = PartBytes::of(size);
    let part = |user: u64, len: u64, align: u64| {
        let guest = memory.user_to_guest(user).ok_or(Refusal::RingOutside)?;
        if !guest.is_multiple_of(align) || memory.host(guest, len).is_none() {
            return Err(Refusal::RingOutside);
        }
        Ok(guest)
    };
    // The words after the rings, for EVENT_IDX, are the worker's to check.
    Ok(RingAddresses {
        descriptors: part(user.descriptors, bytes.descriptors, 16)?,
        avail: part(user.avail, bytes.avail, 2)?,
        used: part(user.used, bytes.used, 4)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::tests::table;

    /// The largest region of the table: 64 KiB at guest address 0.
    const USER: u64 = 0x7f00_0010_0000;

    fn at(descriptors: u64, avail: u64, used: u64) -> RingAddresses {
        RingAddresses {
            descriptors,
            avail,
            used,
        }
    }

    fn ready() -> Vring {
        Vring {
            size: Some(256),
            user: Some(at(USER + 0x1000, USER + 0x2000, USER + 0x3000)),
            used_log: Some(0x7000),
            base: 5,
            kick: Kick::Poll,
            enabled: true,
            running: None,
        }
    }

    #[test]
    fn vu_18_a_ring_is_ready_when_the_last_part_has_come() {
        assert!(ready().is_ready());
        assert!(
            !Vring {
                size: None,
                ..ready()
            }
            .is_ready()
        );
        assert!(
            !Vring {
                user: None,
                ..ready()
            }
            .is_ready()
        );
        assert!(
            !Vring {
                kick: Kick::Missing,
                ..ready()
            }
            .is_ready()
        );
        assert!(
            !Vring {
                enabled: false,
                ..ready()
            }
            .is_ready()
        );
        assert!(
            !Vring {
                running: Some(at(0, 0, 0)),
                ..ready()
            }
            .is_ready()
        );
    }

    #[test]
    fn vu_17_ring_addresses_are_translated() {
        let setup = ready().setup(&table(), true, None).unwrap();
        assert_eq!(setup.addresses, at(0x1000, 0x2000, 0x3000));
        assert_eq!(
            (setup.size, setup.next_avail, setup.event_idx),
            (256, 5, true)
        );
        assert!(setup.kick.is_none() && setup.enabled);
        assert_eq!(setup.used_log, Some(0x7000), "VU-38");
    }

    #[test]
    fn ring_2_a_ring_lies_aligned_in_one_region() {
        let memory = table();
        let user = ready().user.unwrap();
        translate(user, 256, &memory).unwrap();
        let outside = [
            RingAddresses {
                descriptors: USER + 0x1008,
                ..user
            },
            RingAddresses {
                avail: USER + 0x2001,
                ..user
            },
            RingAddresses {
                used: USER + 0x3002,
                ..user
            },
            RingAddresses {
                descriptors: USER + 0xf010,
                ..user
            },
            RingAddresses {
                avail: USER + 0xfdfe,
                ..user
            },
            RingAddresses {
                used: USER + 0xf800,
                ..user
            },
            RingAddresses {
                used: 0x1000,
                ..user
            },
        ];
        for bad in outside {
            assert!(
                matches!(translate(bad, 256, &memory), Err(Refusal::RingOutside)),
                "{bad:?}"
            );
        }
    }

    #[test]
    fn vu_14_a_stopped_ring_keeps_its_index_and_waits_for_a_kick() {
        let mut ring = Vring {
            running: Some(at(0x1000, 0x2000, 0x3000)),
            ..ready()
        };
        ring.stopped(Some(77));
        assert_eq!(ring.base, 77);
        assert!(ring.enabled && ring.running.is_none() && !ring.is_ready());
        ring.kick = Kick::new(None);
        assert!(ring.is_ready());
        ring.stopped(None);
        assert_eq!(ring.base, 77);
    }

    #[test]
    fn vu_24_a_ring_stays_only_where_it_was() {
        let memory = table();
        let mut ring = ready();
        assert!(ring.stays_in(&Memory::default()));
        ring.running = Some(at(0x1000, 0x2000, 0x3000));
        assert!(ring.stays_in(&memory));
        assert!(!ring.stays_in(&Memory::default()));
        ring.running = Some(at(0x5000, 0x2000, 0x3000));
        assert!(!ring.stays_in(&memory));
    }
}
