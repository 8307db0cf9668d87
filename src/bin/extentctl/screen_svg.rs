//! A screen of `top` as a drawing, for documents.

use std::fmt::Write;
use std::path::Path;
use std::time::Duration;

use extentd::protocol::Request;
use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::buffer::{Buffer, Cell};
use ratatui::style::{Color, Modifier};

use crate::ask::{PATIENCE, ask};
use crate::live::Screen;
use crate::status::Failure;

/// Cells of the screen.
const COLUMNS: u16 = 100;
const LINES: u16 = 28;
/// Size of a cell in pixels.
const WIDTH: u16 = 8;
const HEIGHT: u16 = 17;
const MARGIN: u16 = 10;

/// Draws the last of so many screens into a file.
///
/// # Errors
/// Nobody answers, or the file cannot be written.
pub fn watch(path: &Path, interval: Duration, count: u64, file: &Path) -> Result<(), Failure> {
    let mut screen = Screen::new(&path.display().to_string());
    for number in 0..count {
        if number > 0 {
            std::thread::sleep(interval);
        }
        screen.add(&ask(path, &Request::Stats {}, PATIENCE)?)?;
    }
    let failed = |error: String| Failure::from(format!("--svg {}: {error}", file.display()));
    let backend = TestBackend::new(COLUMNS, LINES);
    let mut terminal = Terminal::new(backend).map_err(|error| failed(error.to_string()))?;
    terminal
        .draw(|frame| screen.draw(frame))
        .map_err(|error| failed(error.to_string()))?;
    let text = draw(terminal.backend().buffer());
    std::fs::write(file, text).map_err(|error| failed(error.to_string()))
}

fn colour(cell: &Cell) -> &'static str {
    match cell.fg {
        Color::Green => "#4ade80",
        Color::Cyan => "#22d3ee",
        _ if cell.modifier.contains(Modifier::DIM) => "#94a3b8",
        _ if cell.modifier.contains(Modifier::BOLD) => "#ffffff",
        _ => "#cbd5e1",
    }
}

fn draw(buffer: &Buffer) -> String {
    let area = buffer.area;
    let (width, height) = (
        area.width * WIDTH + 2 * MARGIN,
        area.height * HEIGHT + 2 * MARGIN,
    );
    let mut text = String::new();
    // Writing to a String does not fail.
    let _ = writeln!(
        text,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" \
         width=\"{width}\" height=\"{height}\" font-family=\"monospace\" font-size=\"13\" style=\"white-space:pre\" xml:space=\"preserve\">\n\
         <rect width=\"{width}\" height=\"{height}\" rx=\"6\" fill=\"#0f172a\"/>"
    );
    let lines = buffer.content().chunks(usize::from(area.width));
    for (line, y) in lines.zip((MARGIN + HEIGHT - 4..).step_by(usize::from(HEIGHT))) {
        let mut x = MARGIN;
        for run in line.chunk_by(|a, b| colour(a) == colour(b)) {
            let said: String = run.iter().map(Cell::symbol).collect();
            let cells = u16::try_from(run.len()).unwrap_or(u16::MAX);
            if !said.trim().is_empty()
                && let Some(first) = run.first()
            {
                let fill = colour(first);
                let said = said.replace('&', "&amp;").replace('<', "&lt;");
                // Whatever the font, columns stand below each other.
                let length = cells * WIDTH;
                let _ = writeln!(
                    text,
                    "<text x=\"{x}\" y=\"{y}\" fill=\"{fill}\" textLength=\"{length}\" lengthAdjust=\"spacingAndGlyphs\">{said}</text>"
                );
            }
            x += cells * WIDTH;
        }
    }
    text.push_str("</svg>\n");
    text
}

#[cfg(test)]
mod tests {
    use ratatui::style::Style;

    use super::*;

    #[test]
    fn runs_of_a_colour_are_texts_in_their_place() {
        let mut buffer = Buffer::with_lines(["ab <&", "     ", "  x  "]);
        buffer.set_style(
            ratatui::layout::Rect::new(0, 0, 2, 1),
            Style::new().fg(Color::Green),
        );
        let text = draw(&buffer);
        let lines: Vec<_> = text.lines().filter(|line| line.contains("<text")).collect();
        assert_eq!(
            lines,
            [
                "<text x=\"10\" y=\"23\" fill=\"#4ade80\" textLength=\"16\" lengthAdjust=\"spacingAndGlyphs\">ab</text>",
                "<text x=\"26\" y=\"23\" fill=\"#cbd5e1\" textLength=\"24\" lengthAdjust=\"spacingAndGlyphs\"> &lt;&amp;</text>",
                "<text x=\"10\" y=\"57\" fill=\"#cbd5e1\" textLength=\"40\" lengthAdjust=\"spacingAndGlyphs\">  x  </text>",
            ]
        );
        assert!(text.starts_with("<svg ") && text.ends_with("</svg>\n"));
    }
}
