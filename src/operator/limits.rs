//! The limits of a disk, as operators see and change them.

use std::sync::Arc;

use vhost_backend::{LimitKey, Limits};

use crate::protocol::limits::{LimitNumbers, LimitsNow};

/// The limits of a disk, and which group's they are.
#[derive(Debug, Clone)]
pub(crate) struct Governor {
    /// Shared with the workers.
    pub limits: Arc<Limits>,
    /// The file of `--limit-group`, for people.
    pub group: Option<String>,
}

impl Governor {
    /// What is in force.
    pub(super) fn now(&self) -> LimitsNow {
        LimitsNow {
            group: self.group.clone(),
            limits: self.limits.values().into(),
        }
    }

    /// These are in force from now on, and no others.
    pub(super) fn replace(&self, values: &[(LimitKey, u64)]) {
        let value = |key| values.iter().rfind(|(one, _)| *one == key);
        let all: Vec<_> = LimitKey::all()
            .map(|key| (key, value(key).map_or(0, |(_, value)| *value)))
            .collect();
        self.limits.change(&all);
    }

    /// Changes what is given, and tells what is in force then.
    pub(super) fn change(&self, set: LimitNumbers) -> LimitsNow {
        let changes = set.given();
        if !changes.is_empty() {
            self.limits.change(&changes);
        }
        self.now()
    }
}
