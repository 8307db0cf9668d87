//! Limits on requests and bytes per second.

use std::collections::BTreeMap;

use clap::Args;
use schemars::JsonSchema;
use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize};
use vhost_backend::{LimitKey, LimitValues, Limited};

use crate::options::limit;

/// The answer to `limits`, and what `info` says of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[non_exhaustive]
pub struct LimitsNow {
    /// The file of the group whose limits these are; `None` if this disk has
    /// them alone.
    pub group: Option<String>,
    /// What they are; `None` where there is none.
    pub limits: LimitNumbers,
}

/// A number for each limit: in a request what is to be changed, 0 to lift it;
/// in an answer what is in force. The lines are help texts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Args)]
#[serde(default)]
#[non_exhaustive]
pub struct LimitNumbers {
    /// Requests per second
    #[arg(long, value_name = "N", value_parser = limit::requests)]
    pub iops: Option<u64>,
    /// Reads per second
    #[arg(long, value_name = "N", value_parser = limit::requests)]
    pub read_iops: Option<u64>,
    /// Writes per second, flushes and discards among them
    #[arg(long, value_name = "N", value_parser = limit::requests)]
    pub write_iops: Option<u64>,
    /// Bytes per second
    #[arg(long, value_name = "N", value_parser = limit::bytes)]
    pub bytes: Option<u64>,
    /// Bytes read per second
    #[arg(long, value_name = "N", value_parser = limit::bytes)]
    pub read_bytes: Option<u64>,
    /// Bytes written per second
    #[arg(long, value_name = "N", value_parser = limit::bytes)]
    pub write_bytes: Option<u64>,
    /// Requests that may come at once, after fewer came
    #[arg(long, value_name = "N", value_parser = limit::requests)]
    pub burst_iops: Option<u64>,
    /// Reads that may
    #[arg(long, value_name = "N", value_parser = limit::requests)]
    pub burst_read_iops: Option<u64>,
    /// Writes that may
    #[arg(long, value_name = "N", value_parser = limit::requests)]
    pub burst_write_iops: Option<u64>,
    /// Bytes that may
    #[arg(long, value_name = "N", value_parser = limit::bytes)]
    pub burst_bytes: Option<u64>,
    /// Bytes read that may
    #[arg(long, value_name = "N", value_parser = limit::bytes)]
    pub burst_read_bytes: Option<u64>,
    /// Bytes written that may
    #[arg(long, value_name = "N", value_parser = limit::bytes)]
    pub burst_write_bytes: Option<u64>,
}

impl LimitNumbers {
    fn place(&mut self, key: LimitKey) -> &mut Option<u64> {
        match key {
            LimitKey::Rate(Limited::Iops) => &mut self.iops,
            LimitKey::Rate(Limited::ReadIops) => &mut self.read_iops,
            LimitKey::Rate(Limited::WriteIops) => &mut self.write_iops,
            LimitKey::Rate(Limited::Bytes) => &mut self.bytes,
            LimitKey::Rate(Limited::ReadBytes) => &mut self.read_bytes,
            LimitKey::Rate(Limited::WriteBytes) => &mut self.write_bytes,
            LimitKey::Burst(Limited::Iops) => &mut self.burst_iops,
            LimitKey::Burst(Limited::ReadIops) => &mut self.burst_read_iops,
            LimitKey::Burst(Limited::WriteIops) => &mut self.burst_write_iops,
            LimitKey::Burst(Limited::Bytes) => &mut self.burst_bytes,
            LimitKey::Burst(Limited::ReadBytes) => &mut self.burst_read_bytes,
            LimitKey::Burst(Limited::WriteBytes) => &mut self.burst_write_bytes,
        }
    }

    /// Those that are given.
    pub(crate) fn given(mut self) -> Vec<(LimitKey, u64)> {
        let given = LimitKey::all().filter_map(|key| Some((key, (*self.place(key))?)));
        given.collect()
    }
}

impl From<LimitValues> for LimitNumbers {
    fn from(values: LimitValues) -> Self {
        let mut numbers = Self::default();
        for key in LimitKey::all() {
            *numbers.place(key) = Some(values.get(key)).filter(|value| *value > 0);
        }
        numbers
    }
}

/// The numbers of a request, of which each must be known.
pub(super) fn known<'de, D: Deserializer<'de>>(deserializer: D) -> Result<LimitNumbers, D::Error> {
    let given = BTreeMap::<String, Option<u64>>::deserialize(deserializer)?;
    let mut numbers = LimitNumbers::default();
    for (name, number) in given {
        let key = LimitKey::named(&name.replace('_', "-"));
        let key = key.ok_or_else(|| D::Error::custom(format_args!("unknown limit `{name}`")))?;
        *numbers.place(key) = number;
    }
    Ok(numbers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_limit_has_a_number_of_its_own_name() {
        for key in LimitKey::all() {
            let name = key.name().replace('-', "_");
            let json = format!("{{\"{name}\":5}}");
            let numbers: LimitNumbers = serde_json::from_str(&json).unwrap();
            assert_eq!(numbers.given(), [(key, 5)]);
            let mut values = LimitValues::default();
            values.set(key, 5);
            assert_eq!(LimitNumbers::from(values), numbers);
        }
    }
}
