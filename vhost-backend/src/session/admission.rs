//! Which messages go to the `vhost` crate. It answers what it understands;
//! at anything else it gives up without a reply, and sometimes halfway
//! through the message. Those are refused here first (VU-6, VU-42).
#![cfg_attr(
    not(test),
    deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)
)]

use vhost::vhost_user::message::{FrontendReq, VhostUserProtocolFeatures};

use crate::error::{Refusal, StateError};
use crate::memory::backing::SharedError;
use crate::session::channel::Message;
use crate::session::features::{Negotiated, PROTOCOL};
use crate::sys::Kind;

/// Bit 8 of the payload of SET_VRING_KICK, CALL and ERR: no descriptor.
const NO_FD: u64 = 1 << 8;

/// What has been agreed on and offered.
#[derive(Debug)]
pub(crate) struct Terms {
    pub negotiated: Negotiated,
    /// Virtio features.
    pub offered: u64,
    pub queues: u16,
}

impl Terms {
    /// The request, if the crate can carry it to the handler and answers it.
    pub(crate) fn admit(&self, message: &Message, payload: &[u8]) -> Result<FrontendReq, Refusal> {
        let refused = Refusal::Request(message.request);
        let Ok(request) = FrontendReq::try_from(message.request) else {
            return Err(refused);
        };
        if !self.is_negotiated(request) || !has_form(request, message, payload) {
            return Err(refused);
        }
        let value = u64_at(payload, 0);
        let index = u32_at(payload, 0);
        match request {
            FrontendReq::SET_FEATURES if value & !self.offered != 0 => {
                Err(Refusal::Features(value & !self.offered))
            }
            FrontendReq::SET_PROTOCOL_FEATURES if value & !PROTOCOL.bits() != 0 => {
                Err(Refusal::ProtocolFeatures(value & !PROTOCOL.bits()))
            }
            FrontendReq::GET_VRING_BASE if index >= u32::from(self.queues) => {
                Err(Refusal::NoSuchQueue(index))
            }
            _ => Ok(request),
        }
    }

    fn is_negotiated(&self, request: FrontendReq) -> bool {
        let needed = match request {
            FrontendReq::GET_QUEUE_NUM => VhostUserProtocolFeatures::MQ,
            FrontendReq::GET_CONFIG | FrontendReq::SET_CONFIG => VhostUserProtocolFeatures::CONFIG,
            FrontendReq::SET_BACKEND_REQ_FD => VhostUserProtocolFeatures::BACKEND_REQ,
            FrontendReq::RESET_DEVICE => VhostUserProtocolFeatures::RESET_DEVICE,
            FrontendReq::GET_INFLIGHT_FD | FrontendReq::SET_INFLIGHT_FD => {
                VhostUserProtocolFeatures::INFLIGHT_SHMFD
            }
            FrontendReq::SET_LOG_BASE => VhostUserProtocolFeatures::LOG_SHMFD,
            FrontendReq::SET_DEVICE_STATE_FD | FrontendReq::CHECK_DEVICE_STATE => {
                VhostUserProtocolFeatures::DEVICE_STATE
            }
            FrontendReq::GET_MAX_MEM_SLOTS
            | FrontendReq::ADD_MEM_REG
            | FrontendReq::REM_MEM_REG => VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS,
            FrontendReq::SET_VRING_ENABLE => {
                return self.negotiated.rings_are_enabled_by_message();
            }
            _ => return true,
        };
        self.negotiated.has_protocol(needed)
    }
}

/// Not only asks what is offered, as a probe does.
pub(crate) fn is_of_front_end(request: FrontendReq) -> bool {
    !matches!(
        request,
        FrontendReq::GET_FEATURES
            | FrontendReq::GET_PROTOCOL_FEATURES
            | FrontendReq::SET_PROTOCOL_FEATURES
            | FrontendReq::GET_QUEUE_NUM
            | FrontendReq::GET_MAX_MEM_SLOTS
            | FrontendReq::GET_CONFIG
    )
}

/// Whether a descriptor of this kind is taken with the request. With others
/// nothing is safe: whatever is done with them may wait for whoever serves them.
pub(crate) fn takes(request: FrontendReq, kind: Kind) -> Result<(), Refusal> {
    let taken = match request {
        FrontendReq::SET_VRING_KICK => return is_event("the kick", kind),
        FrontendReq::SET_VRING_CALL => return is_event("the call", kind),
        FrontendReq::SET_VRING_ERR => return is_event("the error event", kind),
        FrontendReq::SET_BACKEND_REQ_FD => kind == Kind::Socket,
        FrontendReq::SET_DEVICE_STATE_FD => {
            return match kind {
                Kind::Pipe => Ok(()),
                _ => Err(StateError::NotAPipe.into()),
            };
        }
        _ => match kind {
            Kind::Elsewhere => return Err(Refusal::Backing(SharedError::Elsewhere)),
            kind => matches!(kind, Kind::Memory | Kind::Disk),
        },
    };
    taken.then_some(()).ok_or(Refusal::Descriptor)
}

fn is_event(what: &'static str, kind: Kind) -> Result<(), Refusal> {
    match kind {
        Kind::Event => Ok(()),
        _ => Err(Refusal::NotAnEvent(what)),
    }
}

/// The payload and the descriptors are such that the crate reads the message
/// to its end and answers it. Requests that are never offered have no form.
fn has_form(request: FrontendReq, message: &Message, payload: &[u8]) -> bool {
    let (size, fds) = (payload.len(), message.fds);
    match request {
        FrontendReq::GET_FEATURES
        | FrontendReq::SET_OWNER
        | FrontendReq::RESET_OWNER
        | FrontendReq::GET_PROTOCOL_FEATURES
        | FrontendReq::GET_QUEUE_NUM
        | FrontendReq::RESET_DEVICE
        | FrontendReq::CHECK_DEVICE_STATE
        | FrontendReq::GET_MAX_MEM_SLOTS => size == 0 && fds == 0,
        FrontendReq::SET_FEATURES
        | FrontendReq::SET_PROTOCOL_FEATURES
        | FrontendReq::SET_VRING_NUM
        | FrontendReq::SET_VRING_BASE
        | FrontendReq::GET_VRING_BASE => size == 8 && fds == 0,
        FrontendReq::SET_VRING_ENABLE => size == 8 && fds == 0 && u32_at(payload, 4) <= 1,
        FrontendReq::SET_VRING_ADDR => {
            let aligned = |at, align| u64_at(payload, at).is_multiple_of(align);
            let rings = aligned(8, 16) && aligned(16, 4) && aligned(24, 2);
            size == 40 && fds == 0 && u32_at(payload, 4) <= 1 && rings
        }
        FrontendReq::SET_VRING_KICK | FrontendReq::SET_VRING_CALL | FrontendReq::SET_VRING_ERR => {
            let expected = usize::from(u64_at(payload, 0) & NO_FD == 0);
            size == 8 && fds == expected
        }
        FrontendReq::SET_MEM_TABLE => size >= 8 && fds <= 32,
        FrontendReq::ADD_MEM_REG => size == 40 && fds == 1,
        FrontendReq::REM_MEM_REG => size == 40 && fds <= 1,
        FrontendReq::SET_BACKEND_REQ_FD => fds == 1,
        FrontendReq::SET_CONFIG => size > 12 && fds == 0,
        // With or without the padding of the structure in C.
        FrontendReq::GET_INFLIGHT_FD => (size == 20 || size == 24) && fds == 0,
        FrontendReq::SET_INFLIGHT_FD => (size == 20 || size == 24) && fds == 1,
        // A direction, and the only phase that there is: all rings stopped.
        FrontendReq::SET_DEVICE_STATE_FD => {
            size == 8 && fds == 1 && u32_at(payload, 0) <= 1 && u32_at(payload, 4) == 0
        }
        FrontendReq::SET_LOG_BASE => size == 16 && fds == 1,
        FrontendReq::GET_CONFIG => {
            let (offset, len) = (u64::from(u32_at(payload, 0)), u64::from(u32_at(payload, 4)));
            let whole = u64::try_from(size).is_ok_and(|size| size.checked_sub(12) == Some(len));
            whole
                && len > 0
                && offset.saturating_add(len) <= 4096
                && u32_at(payload, 8) <= 3
                && fds == 0
        }
        _ => false,
    }
}

/// The answer to a refused request, and the number it is sent under: a
/// failure where one was asked for, and something that can only be understood
/// as one where the front-end waits for a reply in any case (VU-5). `None`:
/// the request is never answered.
pub(crate) fn refusal_reply(
    message: &Message,
    payload: &[u8],
    terms: &Terms,
) -> Option<(u32, Vec<u8>)> {
    let logs = terms
        .negotiated
        .has_protocol(VhostUserProtocolFeatures::LOG_SHMFD);
    if logs && message.request == u32::from(FrontendReq::SET_LOG_BASE) {
        return Some(log_refusal_reply());
    }
    let reply = refusal_payload(message, payload, terms.reply_ack())?;
    Some((message.request, reply))
}

/// The answer to a SET_LOG_BASE that is refused. QEMU looks at nothing but
/// the number of the reply: taken for success, it would migrate a guest
/// without the pages that are written here. So the number is that of no
/// request; the length is what others wait for.
pub(crate) fn log_refusal_reply() -> (u32, Vec<u8>) {
    (0, vec![0; 16])
}

fn refusal_payload(message: &Message, payload: &[u8], reply_ack: bool) -> Option<Vec<u8>> {
    match FrontendReq::try_from(message.request) {
        // No queues and no bytes, and no descriptor either.
        Ok(FrontendReq::GET_INFLIGHT_FD) => Some(vec![0; payload.len().clamp(20, 24)]),
        Ok(FrontendReq::GET_CONFIG) => {
            // No bytes of configuration: an error (VU-25).
            let words = [u32_at(payload, 0), 0, u32_at(payload, 8)];
            Some(words.iter().flat_map(|w| w.to_ne_bytes()).collect())
        }
        // No descriptor comes back, and the lowest byte tells of the failure.
        Ok(FrontendReq::SET_DEVICE_STATE_FD) => Some(0x101_u64.to_ne_bytes().to_vec()),
        Ok(FrontendReq::GET_VRING_BASE) => {
            let words = [u32_at(payload, 0), u32::MAX];
            Some(words.iter().flat_map(|w| w.to_ne_bytes()).collect())
        }
        _ if message.need_reply && reply_ack => Some(1_u64.to_ne_bytes().to_vec()),
        Ok(request) if always_answered(request) => Some(Vec::new()),
        _ => None,
    }
}

/// The reply carries data, with or without `need_reply`.
pub(crate) fn always_answered(request: FrontendReq) -> bool {
    matches!(
        request,
        FrontendReq::GET_FEATURES
            | FrontendReq::GET_PROTOCOL_FEATURES
            | FrontendReq::GET_QUEUE_NUM
            | FrontendReq::GET_VRING_BASE
            | FrontendReq::GET_CONFIG
            | FrontendReq::GET_MAX_MEM_SLOTS
            | FrontendReq::GET_INFLIGHT_FD
            | FrontendReq::GET_STATUS
            | FrontendReq::GET_SHARED_OBJECT
            | FrontendReq::GET_SHMEM_CONFIG
            | FrontendReq::POSTCOPY_ADVISE
            | FrontendReq::SET_DEVICE_STATE_FD
            | FrontendReq::CHECK_DEVICE_STATE
    )
}

fn u32_at(payload: &[u8], at: usize) -> u32 {
    let bytes = payload.get(at..).and_then(<[u8]>::first_chunk).copied();
    bytes.map_or(0, u32::from_ne_bytes)
}

pub(crate) fn u16_at(payload: &[u8], at: usize) -> u16 {
    let bytes = payload.get(at..).and_then(<[u8]>::first_chunk).copied();
    bytes.map_or(0, u16::from_ne_bytes)
}

pub(crate) fn u64_at(payload: &[u8], at: usize) -> u64 {
    let bytes = payload.get(at..).and_then(<[u8]>::first_chunk).copied();
    bytes.map_or(0, u64::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::features::PROTOCOL_FEATURES;

    fn terms(protocol: u64) -> Terms {
        let features = Some(PROTOCOL_FEATURES);
        Terms {
            negotiated: Negotiated { features, protocol },
            offered: PROTOCOL_FEATURES | 0xff,
            queues: 2,
        }
    }

    fn admits(terms: &Terms, request: u32, payload: &[u8], fds: usize) -> bool {
        let message = Message {
            request,
            need_reply: true,
            size: payload.len(),
            fds,
        };
        terms.admit(&message, payload).is_ok()
    }

    #[test]
    fn vu_42_requests_that_were_not_offered_are_refused() {
        let all = terms(PROTOCOL.bits());
        for request in [
            0, 6, 7, 19, 20, 22, 23, 26, 28, 29, 30, 31, 32, 33, 35, 39, 40, 41, 44, 45, 1000,
        ] {
            assert!(!admits(&all, request, &[0; 8], 0), "{request}");
            assert!(!admits(&all, request, &[], 0), "{request}");
        }
    }

    #[test]
    fn vu_42_requests_need_their_protocol_feature() {
        let (all, none) = (terms(PROTOCOL.bits()), terms(0));
        let config = [0_u32, 1, 0].map(u32::to_ne_bytes).concat();
        let get_config = [&config[..], &[0]].concat();
        for (request, payload, fds) in [
            (17, &[][..], 0),
            (34, &[], 0),
            (36, &[], 0),
            (37, &[0; 40], 1),
            (38, &[0; 40], 0),
            (21, &[], 1),
            (24, &get_config, 0),
            (6, &[0; 16], 1),
            (31, &[0; 20], 0),
            (31, &[0; 24], 0),
            (32, &[0; 24], 1),
            (42, &[0; 8], 1),
            (43, &[], 0),
        ] {
            assert!(admits(&all, request, payload, fds), "{request}");
            assert!(!admits(&none, request, payload, fds), "{request}");
        }
    }

    #[test]
    fn vu_7_undefined_features_are_refused() {
        let terms = terms(0);
        assert!(admits(&terms, 2, &(PROTOCOL_FEATURES | 1).to_ne_bytes(), 0));
        assert!(!admits(&terms, 2, &(1_u64 << 63).to_ne_bytes(), 0));
        assert!(!admits(&terms, 16, &(1_u64 << 14).to_ne_bytes(), 0));
    }

    #[test]
    fn vu_12_bit_8_and_the_descriptor_agree() {
        let terms = terms(0);
        for request in [12, 13, 14] {
            assert!(admits(&terms, request, &1_u64.to_ne_bytes(), 1));
            assert!(admits(&terms, request, &0x101_u64.to_ne_bytes(), 0));
            assert!(!admits(&terms, request, &1_u64.to_ne_bytes(), 0));
            assert!(!admits(&terms, request, &0x101_u64.to_ne_bytes(), 1));
            assert!(!admits(&terms, request, &1_u64.to_ne_bytes(), 2));
        }
    }

    #[test]
    fn vu_49_stray_descriptors_are_refused_and_too_many_never_reach_the_crate() {
        let terms = terms(PROTOCOL.bits());
        assert!(!admits(&terms, 1, &[], 1));
        assert!(!admits(&terms, 8, &[0; 8], 1));
        assert!(!admits(&terms, 5, &[0; 40], 33));
        assert!(!admits(&terms, 37, &[0; 40], 0));
        assert!(!admits(&terms, 37, &[0; 40], 2));
        assert!(admits(&terms, 38, &[0; 40], 1));
    }

    #[test]
    fn vu_5_what_must_be_answered_is_answered_also_when_refused() {
        let message = |request, need_reply| Message {
            request,
            need_reply,
            size: 12,
            fds: 0,
        };
        let (all, none) = (terms(PROTOCOL.bits()), terms(0));
        let asked = [7_u32, 4, 0].map(u32::to_ne_bytes).concat();
        let no_bytes = [7_u32, 0, 0].map(u32::to_ne_bytes).concat();
        assert_eq!(
            refusal_reply(&message(24, false), &asked, &none),
            Some((24, no_bytes))
        );
        assert_eq!(
            refusal_reply(&message(1000, true), &asked, &all),
            Some((1000, vec![1, 0, 0, 0, 0, 0, 0, 0]))
        );
        assert_eq!(refusal_reply(&message(1000, true), &asked, &none), None);
        assert_eq!(refusal_reply(&message(8, false), &asked, &all), None);
        assert_eq!(
            refusal_reply(&message(40, false), &asked, &all),
            Some((40, Vec::new()))
        );
        let nothing = refusal_reply(&message(31, false), &[7; 24], &all);
        assert_eq!(nothing, Some((31, vec![0; 24])));
        // Neither QEMU nor others may take it for success.
        let refused = refusal_reply(&message(6, false), &asked, &all);
        assert_eq!(refused, Some((0, vec![0; 16])));
        assert_eq!(refusal_reply(&message(6, false), &asked, &none), None);
    }
}
