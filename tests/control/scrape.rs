//! Scrapers, and what they have scraped.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use front_end::limit;

pub const PLAIN: &str = "Accept: text/plain;version=0.0.4\r\n";

pub fn exchange(mut stream: impl Read + Write, header: &str) -> (String, String) {
    write!(stream, "GET /metrics HTTP/1.1\r\nHost: x\r\n{header}\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    (head.to_owned(), body.to_owned())
}

/// The sum of samples of that name with all of these labels.
pub fn sum(body: &str, name: &str, labels: &[&str]) -> f64 {
    let samples = body.lines().filter(|line| {
        line.strip_prefix(name)
            .is_some_and(|rest| rest.starts_with('{'))
            && labels.iter().all(|label| line.contains(label))
    });
    let values: Vec<f64> = samples
        .map(|line| line.rsplit_once(' ').unwrap().1.parse().unwrap())
        .collect();
    assert!(!values.is_empty(), "{name} {labels:?} in\n{body}");
    values.iter().sum()
}

pub fn scrape_unix(path: &Path, header: &str) -> (String, String) {
    let stream = UnixStream::connect(path).unwrap();
    stream.set_read_timeout(Some(limit())).unwrap();
    exchange(stream, header)
}

pub fn folder_of(disks: &[(&str, &Path)]) -> tempfile::TempDir {
    let folder = rig::scratch::folder("exporter");
    for (name, control) in disks {
        std::os::unix::fs::symlink(control, folder.path().join(name)).unwrap();
    }
    folder
}

/// `extentctl exporter`, until this is dropped.
pub struct Exporter {
    child: Child,
    pub address: String,
}

impl Exporter {
    pub fn start(folder: &Path, timeout: &str) -> Self {
        let all = format!("--all={}", folder.display());
        Self::begin([all.as_str()], timeout)
    }

    /// Of the disks that these arguments name.
    pub fn begin<'a>(disks: impl IntoIterator<Item = &'a str>, timeout: &str) -> Self {
        let mut child = Command::new(rig::extentctl!())
            .args(disks)
            .args(["exporter", "--listen", "0", "--timeout", timeout])
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stderr.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        let (_, address) = line
            .trim_end()
            .split_once("metrics at http://")
            .expect(&line);
        let address = address.trim_end_matches("/metrics").to_owned();
        Self { child, address }
    }

    pub fn scrape(&self, header: &str) -> (String, String) {
        let stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(limit())).unwrap();
        exchange(stream, header)
    }
}

impl Drop for Exporter {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Whether each disk of an exposition is up.
pub fn up(body: &str) -> BTreeMap<String, bool> {
    let samples = body
        .lines()
        .filter_map(|line| line.strip_prefix("extentd_up{control=\""));
    let disk = |rest: &str| {
        let (name, value) = rest.split_once("\"} ").unwrap();
        (name.to_owned(), value == "1")
    };
    samples.map(disk).collect()
}

/// A server that is killed when this is dropped.
pub struct Killed(pub Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
