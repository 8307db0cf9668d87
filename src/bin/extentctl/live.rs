//! `extentctl top` on a terminal: a screen that follows the counters, until q.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use extentd::options::size;
use extentd::protocol::Request;
use extentd::protocol::statistics::{MapStatistics, Statistics};
use ratatui::Frame;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Style, Stylize};
use ratatui::text::Line;
use ratatui::widgets::{Block, LineGauge, Paragraph, Sparkline};
use serde_json::Value;

use crate::ask::{PATIENCE, ask, understand};
use crate::latency::shown;
use crate::output::harmless;
use crate::queues::rows;
use crate::rates::per_second;
use crate::status::{Failure, Status};
use crate::top::{hit_rate, up};

/// Rates that are kept to be drawn.
const HISTORY: usize = 400;
/// How long a key may wait.
const LOOK: Duration = Duration::from_millis(50);

/// A name, and what is counted under it.
type Way = (&'static str, fn(&Statistics) -> u64);

/// What is on the screen.
pub struct Screen {
    name: String,
    now: Option<Statistics>,
    before: Option<Statistics>,
    /// Requests and bytes a second, the newest first.
    requests: VecDeque<u64>,
    bytes: VecDeque<u64>,
}

/// Follows the counters until q is pressed, or so many answers have come.
///
/// # Errors
/// Nobody answers, or nobody any more; or the terminal is of no use.
pub fn watch(path: &Path, interval: Duration, count: Option<u64>) -> Result<(), Failure> {
    let mut screen = Screen::new(&path.display().to_string());
    // Before the terminal is changed, so that a mistake is one line.
    screen.add(&ask(path, &Request::Stats {}, PATIENCE)?)?;
    let (sender, answers) = mpsc::channel();
    let asked = path.to_owned();
    // Who does not answer keeps no key waiting. It ends with the process.
    thread::Builder::new()
        .name("asking".to_owned())
        .spawn(move || {
            loop {
                thread::sleep(interval);
                if sender
                    .send(ask(&asked, &Request::Stats {}, PATIENCE))
                    .is_err()
                {
                    return;
                }
            }
        })
        .map_err(|error| format!("top: no thread that asks: {error}"))?;
    let mut terminal =
        ratatui::try_init().map_err(|error| format!("top: this terminal is of no use: {error}"))?;
    let mut shown = 1;
    let mut follow = || -> Result<(), Failure> {
        let failed = |error| Failure::from(format!("top: the terminal: {error}"));
        loop {
            terminal.draw(|frame| screen.draw(frame)).map_err(failed)?;
            if count.is_some_and(|count| shown >= count)
                || is_over(&answers, &mut screen, &mut shown)?
            {
                return Ok(());
            }
        }
    };
    let result = follow();
    ratatui::restore();
    result
}

/// Waits for a key or an answer, which is to be drawn then; whether it is to
/// end.
fn is_over(
    answers: &mpsc::Receiver<Result<Value, Failure>>,
    screen: &mut Screen,
    shown: &mut u64,
) -> Result<bool, Failure> {
    let since = Instant::now();
    while since.elapsed() < Duration::from_secs(1) {
        if event::poll(LOOK).map_err(|error| format!("top: the terminal: {error}"))? {
            match event::read().map_err(|error| format!("top: the terminal: {error}"))? {
                Event::Key(key) if ends(&key) => return Ok(true),
                Event::Resize(..) => return Ok(false),
                _ => {}
            }
        }
        match answers.recv_timeout(Duration::ZERO) {
            Ok(answer) => {
                let answer = answer.map_err(|failure| match failure.status {
                    Status::Silent => Failure::new(Status::Gone, failure.line),
                    _ => failure,
                })?;
                screen.add(&answer)?;
                *shown = shown.saturating_add(1);
                return Ok(false);
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return Ok(true),
        }
    }
    Ok(false)
}

fn ends(key: &KeyEvent) -> bool {
    let control = key.modifiers.contains(KeyModifiers::CONTROL);
    key.kind == KeyEventKind::Press
        && match key.code {
            KeyCode::Char('q') | KeyCode::Esc => true,
            KeyCode::Char('c') => control,
            _ => false,
        }
}

impl Screen {
    /// Of a disk of this name.
    pub fn new(name: &str) -> Self {
        Self {
            name: harmless(name),
            now: None,
            before: None,
            requests: VecDeque::new(),
            bytes: VecDeque::new(),
        }
    }

    /// Takes an answer to `stats`.
    ///
    /// # Errors
    /// It is none.
    pub fn add(&mut self, answer: &Value) -> Result<(), Failure> {
        let before = self.now.replace(understand(answer)?);
        // A restart begins to count anew.
        self.before = before.filter(|before| before.uptime_ms < self.uptime());
        if let (Some(now), Some(before)) = (&self.now, &self.before) {
            let rate = |get| per_second(now, before, get);
            self.requests.push_front(rate(|of| of.requests));
            self.bytes
                .push_front(rate(|of| of.read_bytes.saturating_add(of.written_bytes)));
            self.requests.truncate(HISTORY);
            self.bytes.truncate(HISTORY);
        }
        Ok(())
    }

    fn uptime(&self) -> u64 {
        self.now.as_ref().map_or(0, |now| now.uptime_ms)
    }

    /// Draws it, in whatever room there is.
    pub fn draw(&self, frame: &mut Frame<'_>) {
        let Some(now) = &self.now else { return };
        let lines = rows(now, self.before.as_ref());
        // As many as there is room for below the rest.
        let room = frame.area().height.saturating_sub(2 + 6 + 4 + 5 + 5);
        let wanted = u16::try_from(lines.len() + 2).unwrap_or(u16::MAX);
        let height = if room < 4 { 0 } else { wanted.min(room) };
        let [head, rates, latency, queues, ways, map] = Layout::vertical([
            Constraint::Length(2),
            Constraint::Min(6),
            Constraint::Length(4),
            Constraint::Length(height),
            Constraint::Length(5),
            Constraint::Length(5),
        ])
        .areas(frame.area());
        self.draw_head(frame, head, now);
        let [requests, bytes] =
            Layout::horizontal([Constraint::Fill(1), Constraint::Fill(1)]).areas(rates);
        self.draw_rates(frame, requests, bytes, now);
        self.draw_latency(frame, latency, now);
        draw_queues(frame, queues, lines);
        self.draw_ways(frame, ways, now);
        self.draw_map(frame, map, now);
    }

    fn draw_head(&self, frame: &mut Frame<'_>, area: Rect, now: &Statistics) {
        let of = &now;
        let way = format!("by the {}", harmless(of.path.as_str()));
        let lines = vec![
            Line::from(vec![
                self.name.as_str().bold(),
                format!("  up {}  ", up(of.uptime_ms)).into(),
                "q quits".dim(),
            ]),
            Line::from(vec![
                way.bold(),
                format!(": {}", harmless(&of.path_reason)).into(),
            ]),
        ];
        frame.render_widget(Paragraph::new(lines), area);
    }

    fn draw_rates(&self, frame: &mut Frame<'_>, requests: Rect, bytes: Rect, now: &Statistics) {
        let of = &now;
        let iops = self.requests.front().map_or_else(dash, u64::to_string);
        let title = format!("requests/s {iops}  failed {}", of.failed_requests);
        let line = Sparkline::default()
            .block(Block::bordered().title(title))
            .data(&self.requests)
            .style(Style::new().fg(Color::Green));
        frame.render_widget(line, requests);
        let rate = |get| {
            let of = |before: &Statistics| size::display(per_second(of, before, get));
            self.before.as_ref().map_or_else(dash, of)
        };
        let (read, written) = (rate(|of| of.read_bytes), rate(|of| of.written_bytes));
        let line = Sparkline::default()
            .block(Block::bordered().title(format!("read {read}/s  written {written}/s")))
            .data(&self.bytes)
            .style(Style::new().fg(Color::Cyan));
        frame.render_widget(line, bytes);
    }

    fn draw_latency(&self, frame: &mut Frame<'_>, area: Rect, now: &Statistics) {
        let before = self.before.as_ref();
        let earlier = before.map(|before| &before.latency);
        let requests = self.requests.front().copied();
        let lines = shown(&now.latency, earlier, requests).map(Line::from);
        let block = Block::bordered().title("latency (some requests are timed)");
        frame.render_widget(Paragraph::new(lines.to_vec()).block(block), area);
    }

    fn draw_ways(&self, frame: &mut Frame<'_>, area: Rect, now: &Statistics) {
        let block = Block::bordered().title("way of operations");
        let inner = block.inner(area);
        frame.render_widget(block, area);
        let lines: [Rect; 3] = Layout::vertical([Constraint::Length(1); 3]).areas(inner);
        let ways: [Way; 3] = [
            ("disk ", |of| of.disk_operations),
            ("file ", |of| of.file_operations),
            ("zeros", |of| of.zero_fills),
        ];
        let grown = ways.map(|(_, get)| {
            let before = self.before.as_ref().map_or(0, &get);
            get(now).saturating_sub(before)
        });
        let all: u64 = grown.iter().sum();
        for (((name, _), part), line) in ways.into_iter().zip(grown).zip(lines) {
            // At most 1000, which is exact.
            let permille = (u128::from(part) * 1000)
                .checked_div(all.into())
                .unwrap_or(0);
            let permille = u32::try_from(permille).unwrap_or(1000).min(1000);
            let gauge = LineGauge::default()
                .label(format!("{name} {:3}.{} %", permille / 10, permille % 10))
                .filled_style(Style::new().fg(Color::Green))
                .ratio(f64::from(permille) / 1000.0);
            frame.render_widget(gauge, line);
        }
    }

    fn draw_map(&self, frame: &mut Frame<'_>, area: Rect, now: &Statistics) {
        let block = Block::bordered().title("map");
        let lines = match &now.map {
            None => vec![Line::from("there is none, as there is no disk path".dim())],
            Some(map) => {
                let before = self.before.as_ref();
                let earlier = before.and_then(|before| before.map.as_ref());
                let rate = earlier.map_or_else(dash, |earlier| hit_rate(map, earlier));
                let total = hit_rate(map, &MapStatistics::default());
                vec![
                    Line::from(format!("hits {rate} now, {total} in all")),
                    Line::from(format!(
                        "{} windows of {} in memory, {} loads, {} evictions",
                        map.resident_windows,
                        size::display(map.window_bytes),
                        map.loads,
                        map.evictions
                    )),
                    Line::from(format!(
                        "{} of {}, {} pinned",
                        size::display(map.resident_bytes),
                        size::display(map.budget_bytes),
                        size::display(map.pinned_bytes)
                    )),
                ]
            }
        };
        frame.render_widget(Paragraph::new(lines).block(block), area);
    }
}

fn draw_queues(frame: &mut Frame<'_>, area: Rect, lines: Vec<String>) {
    let block =
        Block::bordered().title("queues (disk, file, zeros: of all that their worker does)");
    let lines: Vec<_> = lines.into_iter().map(Line::from).collect();
    frame.render_widget(Paragraph::new(lines).block(block), area);
}

fn dash() -> String {
    "-".to_owned()
}

#[cfg(test)]
mod tests {
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;
    use serde_json::json;

    use super::*;

    fn answer(uptime_ms: u64, requests: u64) -> Value {
        let mut sample = Statistics::default();
        let mut map = MapStatistics::default();
        (map.hits, map.misses, map.resident_windows) = (requests * 9, requests, 3);
        sample.map = Some(map);
        (sample.uptime_ms, sample.requests) = (uptime_ms, requests);
        sample.read_bytes = requests << 12;
        (sample.disk_operations, sample.file_operations) = (requests * 3 / 4, requests / 4);
        sample.path_reason = "the image is exclusively ours".to_owned();
        // All at most 1.024 us, but for one that is slow.
        let read = &mut sample.latency.requests.read;
        (read.count, read.sum_ns) = (requests, requests * 1000);
        read.buckets = vec![requests - 1, 0, 0, 1];
        serde_json::to_value(sample).unwrap()
    }

    fn text(screen: &Screen, width: u16, height: u16) -> String {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| screen.draw(frame)).unwrap();
        terminal.backend().to_string()
    }

    #[test]
    fn rates_shares_and_times_are_on_the_screen() {
        let mut screen = Screen::new("/run/vm1\u{1b}.control");
        screen.add(&answer(1000, 1000)).unwrap();
        assert!(text(&screen, 80, 24).contains("requests/s -"));
        screen.add(&answer(3000, 5000)).unwrap();
        let text = text(&screen, 80, 24);
        for part in [
            "/run/vm1\\u{1b}.control  up 0:00:03",
            "by the file: the image is exclusively ours",
            "requests/s 2000",
            "read 7.8 MiB/s",
            "disk   75.0 %",
            "file   25.0 %",
            "read  p50 <=1.0 us",
            "hits 90.0 % now",
            "3 windows",
        ] {
            assert!(text.contains(part), "{part} in\n{text}");
        }
    }

    #[test]
    fn any_size_of_a_terminal_will_do() {
        let mut screen = Screen::new("disk");
        screen.add(&answer(1000, 1000)).unwrap();
        screen.add(&answer(2000, 2000)).unwrap();
        for (width, height) in [(1, 1), (10, 5), (80, 10), (300, 100)] {
            let text = text(&screen, width, height);
            assert_eq!(text.lines().count(), usize::from(height));
        }
    }

    #[test]
    fn queues_are_shown_where_there_is_room_for_them() {
        let mut screen = Screen::new("disk");
        let mut many = answer(1000, 1000);
        let queue = |number: u64| {
            json!({
                "queue": number, "requests": 5, "read_bytes": 0, "written_bytes": 0, "in_flight": number + 40,
                "latency": {"count": 0, "sum_ns": 0, "buckets": []},
            })
        };
        many["queues"] = (0..20).map(queue).collect();
        screen.add(&many).unwrap();
        assert!(!text(&screen, 90, 24).contains("queues"));
        let some = text(&screen, 90, 30);
        assert!(some.contains(" 42 ") && !some.contains(" 59 "), "{some}");
        let all = text(&screen, 90, 50);
        assert!(all.contains(" 42 ") && all.contains(" 59 "), "{all}");
    }

    #[test]
    fn an_extentd_without_a_map_is_shown_as_well() {
        let mut screen = Screen::new("disk");
        let mut plain = answer(1000, 1000);
        plain["map"] = Value::Null;
        screen.add(&plain).unwrap();
        let text = text(&screen, 80, 24);
        assert!(text.contains("no disk path"), "{text}");
        assert!(screen.add(&json!({})).is_err());
    }

    #[test]
    fn q_escape_and_control_c_end_it() {
        let key = |code, modifiers| KeyEvent::new(code, modifiers);
        let none = KeyModifiers::NONE;
        assert!(ends(&key(KeyCode::Char('q'), none)));
        assert!(ends(&key(KeyCode::Esc, none)));
        assert!(ends(&key(KeyCode::Char('c'), KeyModifiers::CONTROL)));
        assert!(!ends(&key(KeyCode::Char('c'), none)));
        assert!(!ends(&key(KeyCode::Char('x'), none)));
    }
}
