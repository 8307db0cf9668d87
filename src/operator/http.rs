//! The little of HTTP that a scrape takes: GET and HEAD of `/metrics`, in the
//! format that is asked for, and one answer for each connection.

use super::metrics::Format;

/// Longest request head in bytes.
pub(super) const HEAD_BYTES: usize = 8 << 10;

const TEXT: &str = "text/plain; charset=utf-8";
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";

/// What a request asks for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Asked {
    /// The metrics.
    Metrics(Form),
    /// Something else: the answer to that.
    Other(Vec<u8>),
}

/// The form of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Form {
    pub format: Format,
    /// Only the head is wanted.
    head_only: bool,
}

impl Form {
    /// The answer with this text, which has the format.
    pub(super) fn answer(self, text: &str) -> Vec<u8> {
        let kind = match self.format {
            Format::OpenMetrics => OPEN_METRICS,
            Format::Prometheus => PROMETHEUS,
        };
        answer("200 OK", kind, text, self.head_only)
    }

    /// The answer where there is nothing to tell for now.
    pub(super) fn refusal(self) -> Vec<u8> {
        let status = "503 Service Unavailable";
        answer(status, TEXT, "try again later\n", self.head_only)
    }
}

/// Whether that is all of a request's head, or as much as is looked at.
pub(super) fn is_whole(received: &[u8]) -> bool {
    received.len() >= HEAD_BYTES || received.windows(4).any(|end| end == b"\r\n\r\n")
}

/// Reads a request's head.
pub(super) fn read(head: &[u8]) -> Asked {
    let head_only = head.starts_with(b"HEAD ");
    let (status, text) = match request(head) {
        Some(("GET" | "HEAD", "/metrics", format)) => {
            return Asked::Metrics(Form { format, head_only });
        }
        None => ("400 Bad Request", "this is no HTTP request\n"),
        Some(("GET" | "HEAD", ..)) => ("404 Not Found", "there is only /metrics here\n"),
        Some(_) => (
            "405 Method Not Allowed\r\nAllow: GET, HEAD",
            "there is only GET here\n",
        ),
    };
    Asked::Other(answer(status, TEXT, text, head_only))
}

fn answer(status: &str, kind: &str, body: &str, head_only: bool) -> Vec<u8> {
    let mut answer = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    if !head_only {
        answer.push_str(body);
    }
    answer.into_bytes()
}

/// The method, the path and the format of a request: what follows the empty
/// line is not looked at.
fn request(received: &[u8]) -> Option<(&str, &str, Format)> {
    let end = received.windows(4).position(|end| end == b"\r\n\r\n")?;
    let head = std::str::from_utf8(received.get(..end)?).ok()?;
    let mut lines = head.split("\r\n");
    let mut words = lines.next()?.split(' ');
    let (method, target, version) = (words.next()?, words.next()?, words.next()?);
    let path = target.split_once('?').map_or(target, |(path, _)| path);
    let is_request = words.next().is_none() && version.starts_with("HTTP/1.");
    is_request.then(|| (method, path, format(lines)))
}

/// The format that suits the one who asks best; OpenMetrics, if both do as
/// well, or neither does.
fn format<'a>(headers: impl Iterator<Item = &'a str>) -> Format {
    let fields = headers.filter_map(|line| line.split_once(':'));
    let accepted = fields
        .filter(|(name, _)| name.eq_ignore_ascii_case("accept"))
        .flat_map(|(_, value)| value.split(','));
    let (mut open_metrics, mut prometheus) = (0, 0);
    for range in accepted {
        let mut parts = range.split(';').map(str::trim);
        let kind = parts.next().unwrap_or_default().to_ascii_lowercase();
        let parameters = parts.filter_map(|part| part.split_once('='));
        let (mut weight, mut version) = (1000, "");
        for (name, value) in parameters {
            match name.trim().to_ascii_lowercase().as_str() {
                "q" => weight = thousandths(value.trim()),
                "version" => version = value.trim().trim_matches('"'),
                _ => {}
            }
        }
        match (kind.as_str(), version) {
            ("application/openmetrics-text", "" | "1.0.0") => {
                open_metrics = weight.max(open_metrics);
            }
            ("text/plain" | "text/*", "" | "0.0.4") => prometheus = weight.max(prometheus),
            _ => {}
        }
    }
    if prometheus > open_metrics {
        Format::Prometheus
    } else {
        Format::OpenMetrics
    }
}

/// A weight between 0 and 1 that has at most three places; else 0.
fn thousandths(text: &str) -> u32 {
    let (whole, part) = text.split_once('.').unwrap_or((text, ""));
    let digits = format!("{whole}{part:0<3}");
    match digits.parse() {
        Ok(weight @ 0..=1000) if digits.len() == 4 => weight,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(accept: &str) -> Format {
        let head = format!("GET /metrics HTTP/1.1\r\nHost: x\r\n{accept}\r\n");
        match read(head.as_bytes()) {
            Asked::Metrics(form) => form.format,
            Asked::Other(answer) => panic!("{}", String::from_utf8_lossy(&answer)),
        }
    }

    #[test]
    fn the_format_is_the_one_that_is_asked_for() {
        let prometheus = "Accept: application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,\
            application/openmetrics-text;version=0.0.1;q=0.4,text/plain;version=1.0.0;q=0.3,\
            text/plain;version=0.0.4;q=0.2,*/*;q=0.1\r\n";
        let cases = [
            ("", Format::OpenMetrics),
            ("Accept: */*\r\n", Format::OpenMetrics),
            (prometheus, Format::OpenMetrics),
            ("ACCEPT: text/plain\r\n", Format::Prometheus),
            ("accept: text/plain; version=0.0.4\r\n", Format::Prometheus),
            (
                "Accept: text/plain;version=0.0.4;q=0.7, application/openmetrics-text;q=0.4\r\n",
                Format::Prometheus,
            ),
            (
                "Accept: text/plain;q=0.4\r\nAccept: application/openmetrics-text;q=0.5\r\n",
                Format::OpenMetrics,
            ),
            (
                "Accept: application/openmetrics-text;version=2.0.0, text/plain;q=0.1\r\n",
                Format::Prometheus,
            ),
            ("Accept: text/html, text/plain;q=0\r\n", Format::OpenMetrics),
            (
                "Accept: application/openmetrics-text;q=nonsense, text/plain;q=0.001\r\n",
                Format::Prometheus,
            ),
            ("Acceptable: text/plain\r\n", Format::OpenMetrics),
        ];
        for (accept, format) in cases {
            assert_eq!(asked(accept), format, "{accept}");
        }
    }

    #[test]
    fn the_answer_names_its_format_and_a_head_has_no_body() {
        let form = |head: &[u8]| match read(head) {
            Asked::Metrics(form) => String::from_utf8(form.answer("up 1\n")).unwrap(),
            Asked::Other(_) => panic!(),
        };
        let plain = form(b"GET /metrics HTTP/1.1\r\nAccept: text/plain\r\n\r\n");
        assert!(plain.contains("\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\n"));
        assert!(plain.ends_with("\r\n\r\nup 1\n"));
        let head = form(b"HEAD /metrics HTTP/1.1\r\n\r\n");
        assert!(head.contains("openmetrics-text; version=1.0.0") && head.ends_with("\r\n\r\n"));
        assert!(head.contains("\r\nContent-Length: 5\r\n"));
    }
}
