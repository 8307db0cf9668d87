//! Results of a comparison: one line for each measurement, with tabs between
//! its fields.

use super::error::{LoadError, LoadResult};

/// One measurement.
#[derive(Debug, Clone, PartialEq)]
struct Measured {
    /// Where the image was.
    place: String,
    /// What was asked.
    case: String,
    /// Who was asked.
    variant: String,
    /// Requests per second.
    iops: f64,
    /// CPU seconds per million requests.
    cpu: f64,
    /// Latencies in microseconds: p50, p99, p99.9.
    latencies: [f64; 3],
}

/// Measurements of a run, in its order.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Results(Vec<Measured>);

/// Median, least and greatest of some figures.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Spread {
    pub median: f64,
    pub least: f64,
    pub greatest: f64,
}

impl Spread {
    fn of(figures: impl Iterator<Item = f64>) -> Option<Self> {
        let mut sorted: Vec<_> = figures.collect();
        sorted.sort_by(f64::total_cmp);
        let (least, greatest) = (*sorted.first()?, *sorted.last()?);
        let upper = sorted.len() / 2;
        let lower = (sorted.len() - 1) / 2;
        Some(Self {
            median: f64::midpoint(sorted[lower], sorted[upper]),
            least,
            greatest,
        })
    }
}

/// All rounds of one variant in one case.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Summary<'a> {
    pub variant: &'a str,
    pub iops: Spread,
    pub cpu: Spread,
    pub latencies: [Spread; 3],
}

fn in_order<'a>(names: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let mut seen = Vec::new();
    for name in names {
        if !seen.contains(&name) {
            seen.push(name);
        }
    }
    seen
}

impl Results {
    /// Fields: place, case, variant, IOPS, CPU seconds per million, and three
    /// latencies in microseconds.
    ///
    /// # Errors
    /// A line has other fields; it is named.
    pub fn parse(text: &str) -> LoadResult<Self> {
        let mut all = Vec::new();
        for (line, number) in text.lines().zip(1..) {
            let measured = Self::line(line).ok_or_else(|| {
                LoadError::Plan(format!("line {number} of the results is not a measurement"))
            })?;
            all.push(measured);
        }
        if all.is_empty() {
            return Err(LoadError::Plan("there are no results".to_owned()));
        }
        Ok(Self(all))
    }

    fn line(line: &str) -> Option<Measured> {
        let fields: Vec<_> = line.split('\t').collect();
        let [place, case, variant, iops, cpu, p50, p99, p999] = fields.try_into().ok()?;
        let number = |text: &str| text.parse::<f64>().ok().filter(|n| n.is_finite());
        Some(Measured {
            place: place.to_owned(),
            case: case.to_owned(),
            variant: variant.to_owned(),
            iops: number(iops)?,
            cpu: number(cpu)?,
            latencies: [number(p50)?, number(p99)?, number(p999)?],
        })
    }

    pub(super) fn places(&self) -> Vec<&str> {
        in_order(self.0.iter().map(|m| m.place.as_str()))
    }

    pub(super) fn variants(&self) -> Vec<&str> {
        in_order(self.0.iter().map(|m| m.variant.as_str()))
    }

    pub(super) fn cases(&self, place: &str) -> Vec<&str> {
        let here = self.0.iter().filter(|m| m.place == place);
        in_order(here.map(|m| m.case.as_str()))
    }

    /// The variants of a case, in the order of the run.
    pub(super) fn summaries(&self, place: &str, case: &str) -> Vec<Summary<'_>> {
        let summary = |variant| {
            let is = |m: &&Measured| m.place == place && m.case == case && m.variant == variant;
            let spread =
                |figure: fn(&Measured) -> f64| Spread::of(self.0.iter().filter(is).map(figure));
            Some(Summary {
                variant,
                iops: spread(|m| m.iops)?,
                cpu: spread(|m| m.cpu)?,
                latencies: [
                    spread(|m| m.latencies[0])?,
                    spread(|m| m.latencies[1])?,
                    spread(|m| m.latencies[2])?,
                ],
            })
        };
        self.variants().into_iter().filter_map(summary).collect()
    }
}

/// A count in three digits: `9.87k`, `123k`, `1.20M`.
pub(super) fn short(figure: f64) -> String {
    let (scaled, unit) = match figure {
        f if f >= 1e6 => (f / 1e6, "M"),
        f if f >= 1e3 => (f / 1e3, "k"),
        f => (f, ""),
    };
    let digits = match scaled {
        s if s >= 99.95 => 0,
        s if s >= 9.995 => 1,
        _ => 2,
    };
    format!("{scaled:.digits$}{unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "ram\tread\tA\t100\t2\t1\t2\t3\nram\tread\tB\t50\t4\t1\t2\t3\n\
                        ram\tread\tA\t300\t1\t1\t4\t3\nram\tread\tA\t120\t3\t1\t9\t3";

    #[test]
    fn rounds_are_summed_up_by_their_median() {
        let results = Results::parse(TEXT).unwrap();
        assert_eq!(
            (results.places(), results.cases("ram")),
            (vec!["ram"], vec!["read"])
        );
        let summaries = results.summaries("ram", "read");
        assert_eq!(summaries.len(), 2);
        let first = &summaries[0];
        let spread = |median, least, greatest| Spread {
            median,
            least,
            greatest,
        };
        assert_eq!(first.iops, spread(120.0, 100.0, 300.0));
        assert_eq!(first.cpu, spread(2.0, 1.0, 3.0));
        assert_eq!(first.latencies[1], spread(4.0, 2.0, 9.0));
        let even = Spread::of([1.0, 4.0].into_iter()).unwrap();
        assert_eq!(even, spread(2.5, 1.0, 4.0));
    }

    #[test]
    fn a_wrong_line_is_named() {
        for (text, part) in [("", "no results"), ("ram\tread\tA\t1\t2\t3\t4\n", "line 1")] {
            let error = Results::parse(text).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
        let nan = TEXT.replace("300", "NaN");
        assert!(
            Results::parse(&nan)
                .unwrap_err()
                .to_string()
                .contains("line 3")
        );
    }

    #[test]
    fn counts_are_short() {
        for (figure, text) in [
            (0.5, "0.50"),
            (9870.0, "9.87k"),
            (123_456.0, "123k"),
            (1.2e6, "1.20M"),
            (45.67, "45.7"),
        ] {
            assert_eq!(short(figure), text);
        }
    }
}
