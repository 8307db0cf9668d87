//! Results as Markdown.

use std::fmt::Write;

use super::results::{Results, Spread, Summary, short};

/// A table for each place. Ratios are those of medians to `reference`'s.
pub fn table(results: &Results, reference: &str) -> String {
    let mut out = String::new();
    for place in results.places() {
        // Writing to a string cannot fail.
        let _ = writeln!(
            out,
            "### {place}\n\n\
             | case | who | IOPS (min-max) | ratio | CPU s per million (min-max) | ratio | p50 | p99 | p99.9 | p99 ratio |\n\
             |---|---|---:|---:|---:|---:|---:|---:|---:|---:|"
        );
        for case in results.cases(place) {
            let summaries = results.summaries(place, case);
            let base = summaries.iter().find(|s| s.variant == reference).cloned();
            for (index, summary) in summaries.iter().enumerate() {
                let name = if index == 0 { case } else { "" };
                let _ = writeln!(out, "{}", row(name, summary, base.as_ref()));
            }
        }
        out.push('\n');
    }
    out
}

fn row(case: &str, summary: &Summary<'_>, base: Option<&Summary<'_>>) -> String {
    let ratio = |figure: fn(&Summary<'_>) -> f64| match base {
        Some(base) if figure(base) > 0.0 => format!("{:.2}x", figure(summary) / figure(base)),
        _ => "-".to_owned(),
    };
    let cells = [
        case.to_owned(),
        summary.variant.to_owned(),
        spread(summary.iops),
        ratio(|s| s.iops.median),
        spread(summary.cpu),
        ratio(|s| s.cpu.median),
        micros(summary.latencies[0].median),
        micros(summary.latencies[1].median),
        micros(summary.latencies[2].median),
        ratio(|s| s.latencies[1].median),
    ];
    format!("| {} |", cells.join(" | "))
}

fn spread(spread: Spread) -> String {
    let Spread {
        median,
        least,
        greatest,
    } = spread;
    format!("{} ({}-{})", short(median), short(least), short(greatest))
}

/// A latency with its unit.
pub(super) fn micros(figure: f64) -> String {
    if figure >= 1000.0 {
        format!("{} ms", short(figure / 1000.0))
    } else {
        format!("{} us", short(figure))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_case_shows_its_variants_and_their_ratios() {
        let text =
            "ram\tread\tours\t200000\t2\t10\t20\t1500\nram\tread\ttheirs\t100000\t8\t10\t40\t30";
        let table = table(&Results::parse(text).unwrap(), "theirs");
        let rows: Vec<_> = table.lines().skip(4).collect();
        assert_eq!(
            rows[0],
            "| read | ours | 200k (200k-200k) | 2.00x | 2.00 (2.00-2.00) | 0.25x | 10.0 us | 20.0 us | 1.50 ms | 0.50x |"
        );
        assert!(rows[1].starts_with("|  | theirs | 100k"), "{}", rows[1]);
        let alone = super::table(&Results::parse(text).unwrap(), "nobody");
        assert!(alone.contains("| - |"), "{alone}");
    }
}
