//! The counters of disks as text that Prometheus and its kin collect: as
//! OpenMetrics 1.0, or in the older format that has no such name. Which metric
//! has which number is in the table of families.

mod families;
mod scraped;

use std::fmt;
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{self, DescriptorEncoder, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::{Registry, Unit};

use self::families::{EXPORTER, FAMILIES, Family, Number, Sample, Samples};
use self::scraped::Label;
pub use self::scraped::{Asked, Scraped};
use crate::protocol::statistics::Times;

/// How the text is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    /// OpenMetrics 1.0.
    #[default]
    OpenMetrics,
    /// The text format of Prometheus, version 0.0.4.
    Prometheus,
}

/// The exposition of disks: all that is known of each.
pub fn exposition(disks: Vec<Scraped>, format: Format) -> String {
    let mut registry = Registry::with_prefix("extentd");
    registry.register_collector(Box::new(Disks(disks)));
    let mut text = String::new();
    let written = match format {
        Format::OpenMetrics => encoding::text::encode(&mut text, &registry),
        Format::Prometheus => encoding::prometheus_text::encode(&mut text, &registry),
    };
    if let Err(error) = written {
        log::error!("metrics cannot be written: {error}");
    }
    text
}

#[derive(Debug)]
struct Disks(Vec<Scraped>);

impl Collector for Disks {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let exporter = self.0.iter().any(|disk| disk.asked.is_some());
        let families = EXPORTER.iter().filter(|_| exporter).chain(FAMILIES);
        for family in families {
            let told: Vec<&Scraped> = self.0.iter().filter(|disk| family.concerns(disk)).collect();
            if told.is_empty() {
                continue;
            }
            let unit = family.number.unit();
            let (name, kind) = (family.name, family.number.kind());
            let mut encoder = encoder.encode_descriptor(name, family.help, unit.as_ref(), kind)?;
            for disk in told {
                family.tell(disk, &mut encoder)?;
            }
        }
        Ok(())
    }
}

impl Number {
    fn kind(self) -> MetricType {
        match self {
            Self::Counter | Self::CounterOfBytes | Self::CounterOfTime => MetricType::Counter,
            Self::Gauge | Self::GaugeOfBytes | Self::GaugeOfTime => MetricType::Gauge,
            Self::Times => MetricType::Histogram,
            Self::Words => MetricType::Info,
        }
    }

    fn unit(self) -> Option<Unit> {
        match self {
            Self::Counter | Self::Gauge | Self::Words => None,
            Self::CounterOfBytes | Self::GaugeOfBytes => Some(Unit::Bytes),
            Self::CounterOfTime | Self::GaugeOfTime | Self::Times => Some(Unit::Seconds),
        }
    }
}

impl Family {
    /// Whether there is something to tell of it.
    fn concerns(&self, disk: &Scraped) -> bool {
        match (&self.samples, &disk.statistics) {
            (Samples::Asked(_), _) => true,
            (_, None) => false,
            (Samples::Map(_) | Samples::Extents, Some(of)) => of.map.is_some(),
            (Samples::Lease, Some(of)) => of.lease_held.is_some(),
            (Samples::Room(_), Some(of)) => of.room.is_some(),
            (_, Some(_)) => true,
        }
    }

    fn tell(&self, disk: &Scraped, encoder: &mut MetricEncoder<'_>) -> fmt::Result {
        let base = match self.samples {
            // It has one name, whether it answers or not.
            Samples::Asked(_) => disk.labels().into_iter().take(1).collect(),
            _ => disk.labels(),
        };
        let with = |more: Option<Label<'static>>| {
            let mut labels = base.clone();
            labels.extend(more);
            labels
        };
        if let Samples::Asked(value) = self.samples {
            return self.sample(&with(None), value(disk), encoder);
        }
        let Some(of) = &disk.statistics else {
            return Ok(());
        };
        match (&self.samples, &of.map) {
            (Samples::Disk(samples), _) => self.each(samples, of, with, encoder),
            (Samples::Map(samples), Some(map)) => self.each(samples, map, with, encoder),
            (Samples::Extents, Some(map)) => {
                let kinds = map.extents.named();
                let mut kinds = kinds.iter();
                kinds.try_for_each(|(kind, count)| {
                    self.sample(&with(Some(("kind", kind.as_str()))), *count, encoder)
                })
            }
            (Samples::Lease, _) => {
                let held = of.lease_held.is_some_and(|held| held);
                self.sample(&with(None), u64::from(held), encoder)
            }
            (Samples::Room(count), _) => match &of.room {
                Some(room) => self.sample(&with(None), count(room), encoder),
                None => Ok(()),
            },
            (Samples::Operations(counts), _) => {
                let mut counts = counts(of).named().into_iter();
                counts.try_for_each(|(name, count)| {
                    self.sample(&with(Some(("operation", name))), *count, encoder)
                })
            }
            (Samples::Stages, _) => {
                let mut stages = of.latency.stages.named().into_iter();
                stages.try_for_each(|(name, times)| {
                    histogram(&with(Some(("stage", name))), times, encoder)
                })
            }
            (Samples::Requests, _) => {
                let mut requests = of.latency.requests.named().into_iter();
                requests.try_for_each(|(name, times)| {
                    histogram(&with(Some(("operation", name))), times, encoder)
                })
            }
            (Samples::Words(words), _) => {
                let mut labels = base.clone();
                labels.extend(words(of));
                encoder.encode_info(&labels.as_slice())
            }
            (Samples::Map(_) | Samples::Extents, None) | (Samples::Asked(_), _) => Ok(()),
        }
    }

    fn each<'a, T>(
        &self,
        samples: &[Sample<T>],
        of: &T,
        with: impl Fn(Option<Label<'static>>) -> Vec<Label<'a>>,
        encoder: &mut MetricEncoder<'_>,
    ) -> fmt::Result {
        let mut samples = samples.iter();
        samples.try_for_each(|(label, count)| self.sample(&with(*label), count(of), encoder))
    }

    /// Times are counted in microseconds.
    fn sample(
        &self,
        labels: &[Label<'_>],
        value: u64,
        encoder: &mut MetricEncoder<'_>,
    ) -> fmt::Result {
        let mut encoder = encoder.encode_family(&labels)?;
        let seconds = Duration::from_micros(value).as_secs_f64();
        match self.number {
            Number::Counter | Number::CounterOfBytes => {
                encoder.encode_counter::<NoLabelSet, u64, f64>(&value, None)
            }
            Number::CounterOfTime => encoder.encode_counter::<NoLabelSet, f64, f64>(&seconds, None),
            Number::Gauge | Number::GaugeOfBytes => encoder.encode_gauge(&value),
            Number::GaugeOfTime => encoder.encode_gauge(&seconds),
            // They have samples of other forms.
            Number::Times | Number::Words => Ok(()),
        }
    }
}

fn histogram(labels: &[Label<'_>], times: &Times, encoder: &mut MetricEncoder<'_>) -> fmt::Result {
    let seconds = |ns: u64| Duration::from_nanos(ns).as_secs_f64();
    let bounds = vhost_backend::BOUNDS.into_iter().map(seconds);
    let buckets: Vec<(f64, u64)> = bounds.chain([f64::INFINITY]).zip(times.counts()).collect();
    // All buckets together, as the format demands.
    let count = buckets.iter().map(|(_, count)| count).sum();
    encoder
        .encode_family(&labels)?
        .encode_histogram::<NoLabelSet>(seconds(times.sum_ns), count, &buckets, None)
}

#[cfg(test)]
mod tests;
