//! Results as a picture: for each place and case a bar of IOPS, a bar of CPU
//! time, and the latencies.

use std::fmt::Write;

use super::results::{Results, Spread, Summary, short};
use super::table::micros;

const WIDTH: f64 = 1160.0;
const MARGIN: f64 = 24.0;
/// Where the three columns begin, and how wide their figures are.
const COLUMNS: [f64; 3] = [220.0, 500.0, 780.0];
const COLUMN: f64 = 200.0;
const LATENCY_COLUMN: f64 = 250.0;
const ROW: f64 = 17.0;
const GAP: f64 = 12.0;
const COLORS: [&str; 6] = [
    "#1d4ed8", "#ea580c", "#6b7280", "#0d9488", "#a21caf", "#60a5fa",
];
const STYLE: &str = "text{font-family:'Helvetica Neue',Helvetica,Arial,'Liberation Sans','DejaVu Sans',sans-serif;font-size:11px;fill:#1f2937}\
.t{font-size:17px;font-weight:600}.h{font-size:13px;font-weight:600}.m{fill:#6b7280}.c{font-weight:600}";

/// Draws an SVG with a legend and a block for each place.
pub fn plot(results: &Results, title: &str) -> String {
    let mut drawing = Drawing {
        body: String::new(),
        y: 66.0,
        variants: results.variants(),
    };
    drawing.legend(title);
    for place in results.places() {
        drawing.place(results, place);
    }
    let height = drawing.y + MARGIN / 2.0;
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height:.0}\" width=\"{WIDTH}\" height=\"{height:.0}\">\
         <style>{STYLE}</style><rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n{}</svg>\n",
        drawing.body
    )
}

struct Drawing<'a> {
    body: String,
    y: f64,
    variants: Vec<&'a str>,
}

/// A decade-wide logarithmic axis over all latencies of a place.
struct Axis {
    low: f64,
    high: f64,
}

impl Axis {
    fn over(latencies: impl Iterator<Item = f64>) -> Self {
        let (mut low, mut high) = (f64::MAX, f64::MIN);
        for latency in latencies {
            let power = latency.max(0.1).log10();
            low = low.min(power.floor());
            high = high.max(power.ceil());
        }
        Self {
            low,
            high: high.max(low + 1.0),
        }
    }

    fn at(&self, latency: f64) -> f64 {
        let part = (latency.max(0.1).log10() - self.low) / (self.high - self.low);
        COLUMNS[2] + part * LATENCY_COLUMN
    }

    fn ticks(&self) -> impl Iterator<Item = f64> {
        let (mut power, high) = (self.low, self.high);
        std::iter::from_fn(move || {
            let tick = 10_f64.powf(power);
            power += 1.0;
            (power - 1.0 <= high).then_some(tick)
        })
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

impl Drawing<'_> {
    // Writing to a string cannot fail.
    fn text(&mut self, x: f64, y: f64, class: &str, anchor: &str, text: &str) {
        let text = escaped(text);
        let _ = writeln!(
            self.body,
            "<text x=\"{x:.1}\" y=\"{y:.1}\" class=\"{class}\" text-anchor=\"{anchor}\">{text}</text>"
        );
    }

    fn bar(&mut self, x: f64, y: f64, (width, height): (f64, f64), color: &str) {
        let _ = writeln!(
            self.body,
            "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\" rx=\"2\" fill=\"{color}\"/>"
        );
    }

    fn line(&mut self, (x1, y1): (f64, f64), (x2, y2): (f64, f64), color: &str, width: f64) {
        let _ = writeln!(
            self.body,
            "<line x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\" stroke=\"{color}\" stroke-width=\"{width}\"/>"
        );
    }

    fn dot(&mut self, x: f64, y: f64, radius: f64, color: &str) {
        let _ = writeln!(
            self.body,
            "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"{radius}\" fill=\"{color}\"/>"
        );
    }

    fn color(&self, variant: &str) -> &'static str {
        let index = self.variants.iter().position(|v| *v == variant);
        COLORS[index.unwrap_or(0) % COLORS.len()]
    }

    fn legend(&mut self, title: &str) {
        self.text(MARGIN, 30.0, "t", "start", title);
        let mut x = MARGIN;
        for variant in self.variants.clone() {
            self.bar(x, 43.0, (11.0, 11.0), self.color(variant));
            self.text(x + 16.0, 52.5, "", "start", variant);
            // As wide as the letters are on average.
            x += 40.0 + 6.2 * variant.chars().map(|_| 1.0).sum::<f64>();
        }
        let note = "bars: median of the rounds, whiskers: min and max; dots: p50, p99, p99.9";
        self.text(WIDTH - MARGIN, 52.5, "m", "end", note);
    }

    fn place(&mut self, results: &Results, place: &str) {
        let cases = results.cases(place);
        let summaries: Vec<_> = cases.iter().map(|c| results.summaries(place, c)).collect();
        let latencies = summaries.iter().flatten().flat_map(|s| s.latencies);
        let axis = Axis::over(latencies.map(|l| l.median));

        self.y += 20.0;
        self.text(MARGIN, self.y, "h", "start", place);
        self.y += 20.0;
        self.text(COLUMNS[0], self.y, "m", "start", "IOPS");
        self.text(
            COLUMNS[1],
            self.y,
            "m",
            "start",
            "CPU seconds per million requests",
        );
        self.text(COLUMNS[2], self.y, "m", "start", "latency (logarithmic)");
        self.y += 10.0;
        let rows: f64 = summaries.iter().flatten().map(|_| ROW).sum();
        let gaps: f64 = summaries.iter().map(|_| GAP).sum();
        let bottom = self.y + rows + gaps;
        for tick in axis.ticks() {
            let x = axis.at(tick);
            self.line((x, self.y), (x, bottom), "#e5e7eb", 1.0);
            self.text(x, bottom + 13.0, "m", "middle", &tick_name(tick));
        }
        for (case, summaries) in cases.iter().zip(&summaries) {
            self.case(case, summaries, &axis);
        }
        self.y = bottom + 26.0;
    }

    fn case(&mut self, case: &str, summaries: &[Summary<'_>], axis: &Axis) {
        let most = |figure: fn(&Summary<'_>) -> Spread| {
            let greatest = summaries.iter().map(|s| figure(s).greatest);
            greatest.fold(f64::MIN_POSITIVE, f64::max)
        };
        let (most_iops, most_cpu) = (most(|s| s.iops), most(|s| s.cpu));
        self.text(MARGIN, self.y + GAP / 2.0 + 12.0, "c", "start", case);
        self.y += GAP / 2.0;
        for summary in summaries {
            let color = self.color(summary.variant);
            self.figure(COLUMNS[0], summary.iops, most_iops, color);
            self.figure(COLUMNS[1], summary.cpu, most_cpu, color);
            self.latencies(summary, axis, color);
            self.y += ROW;
        }
        self.y += GAP / 2.0;
    }

    fn figure(&mut self, x: f64, spread: Spread, most: f64, color: &str) {
        let wide = |figure: f64| COLUMN * figure / most;
        let middle = self.y + ROW / 2.0;
        self.bar(
            x,
            self.y + 2.0,
            (wide(spread.median).max(1.0), ROW - 4.0),
            color,
        );
        let (least, greatest) = (x + wide(spread.least), x + wide(spread.greatest));
        self.line((least, middle), (greatest, middle), "#111827", 1.0);
        for end in [least, greatest] {
            self.line((end, middle - 3.0), (end, middle + 3.0), "#111827", 1.0);
        }
        self.text(
            greatest.max(x + wide(spread.median)) + 6.0,
            middle + 4.0,
            "",
            "start",
            &short(spread.median),
        );
    }

    fn latencies(&mut self, summary: &Summary<'_>, axis: &Axis, color: &str) {
        let [p50, p99, p999] = summary.latencies.map(|l| axis.at(l.median));
        let middle = self.y + ROW / 2.0;
        self.line((p50, middle), (p999, middle), color, 2.0);
        for (x, radius) in [(p50, 4.5), (p99, 3.5), (p999, 2.5)] {
            self.dot(x, middle, radius, color);
        }
        let name = micros(summary.latencies[1].median);
        self.text(
            COLUMNS[2] + LATENCY_COLUMN + 10.0,
            middle + 4.0,
            "m",
            "start",
            &format!("p99 {name}"),
        );
    }
}

/// A power of ten microseconds with its unit.
fn tick_name(micros: f64) -> String {
    match micros {
        m if m >= 0.99e6 => format!("{:.0} s", m / 1e6),
        m if m >= 990.0 => format!("{:.0} ms", m / 1e3),
        m if m >= 0.99 => format!("{m:.0} us"),
        m => format!("{m:.1} us"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_escaped_and_everything_is_shown() {
        let text =
            "a<b\tread\tours\t200000\t2\t10\t20\t1500\na<b\tread\ttheirs\t100000\t8\t10\t40\t30";
        let svg = plot(&Results::parse(text).unwrap(), "x & y");
        assert!(svg.contains("a&lt;b") && svg.contains("x &amp; y"));
        for shown in [
            "ours",
            "theirs",
            "200k",
            "100k",
            "p99 20.0 us",
            "p99 40.0 us",
            "10 ms",
        ] {
            assert!(svg.contains(shown), "{shown}");
        }
        // Two bars for each of the two figures, two in the legend, one behind all.
        assert_eq!(svg.matches("<rect").count(), 7);
        assert_eq!(svg.matches("<circle").count(), 6);
    }

    #[test]
    fn latencies_stay_within_their_column() {
        let axis = Axis::over([3.0, 20_000.0].into_iter());
        assert!((axis.at(1.0) - COLUMNS[2]).abs() < 1e-9);
        assert!((axis.at(100_000.0) - COLUMNS[2] - LATENCY_COLUMN).abs() < 1e-9);
        let names: Vec<_> = axis.ticks().map(tick_name).collect();
        assert_eq!(
            names,
            ["1 us", "10 us", "100 us", "1 ms", "10 ms", "100 ms"]
        );
    }
}
