//! A process with an image, a control socket and metrics.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use extentd::operator::control::{self, Answer, Request};
use front_end::{Daemon, LIMIT, Like, Wanted};
use rig::attached::Attached;
use rig::small_image::{IMAGE, content};
use tempfile::TempDir;

pub const GET: &[u8] = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n";

pub struct LookedAfter {
    pub daemon: Daemon,
    pub control: PathBuf,
    pub metrics: SocketAddr,
    pub files: TempDir,
}

impl LookedAfter {
    pub fn start(variables: &[(&str, &str)]) -> Self {
        let files = rig::scratch::folder("hostile");
        let path = |name: &str| files.path().join(name);
        std::fs::write(path("image"), content(0, IMAGE)).unwrap();
        let control = path("control");
        let arguments = [
            "--control-path",
            control.to_str().unwrap(),
            "--metrics-listen",
            "127.0.0.1:0",
        ];
        let daemon = Daemon::start_with(
            &rig::extentd!(),
            &path("socket"),
            &path("image"),
            &arguments,
            variables,
        )
        .unwrap();
        let line = daemon
            .wait_stderr(|line| line.contains("metrics at http://"))
            .unwrap();
        let address = line.split("http://").nth(1).unwrap();
        let metrics = address.trim_end_matches("/metrics").parse().unwrap();
        Self {
            daemon,
            control,
            metrics,
            files,
        }
    }

    /// A correct scrape, an operator and a guest have their answers.
    pub fn assert_all_served(&self) {
        self.assert_scraped();
        self.assert_answered();
        let mut guest = Attached::new(self.daemon.socket(), Like::Qemu, Wanted::default());
        assert_eq!(guest.read(5, 512), content(5 * 512, 512));
    }

    pub fn assert_scraped(&self) {
        let mut stream = TcpStream::connect(self.metrics).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        stream.write_all(GET).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(
            answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("# EOF\n"),
            "{answer}"
        );
    }

    pub fn assert_answered(&self) {
        let answer = control::ask(&self.control, &Request::Info {}, LIMIT).unwrap();
        assert!(matches!(answer, Answer::Result(_)), "{answer:?}");
    }

    pub fn operator(&self) -> Line {
        let stream = UnixStream::connect(&self.control).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        Line(BufReader::new(stream))
    }

    /// As [`operator`](Self::operator), greeted.
    pub fn greeted(&self) -> Line {
        let mut line = self.operator();
        let hello = line.hear();
        assert!(hello.contains("\"hello\""), "{hello}");
        line
    }

    /// How many files it has open.
    pub fn open_files(&self) -> usize {
        let folder = format!("/proc/{}/fd", self.daemon.pid());
        std::fs::read_dir(folder).unwrap().count()
    }
}

/// A connection to a control socket.
pub struct Line(BufReader<UnixStream>);

impl Line {
    pub fn say(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.0.get_mut().write_all(bytes)
    }

    pub fn hear(&mut self) -> String {
        let mut line = String::new();
        self.0.read_line(&mut line).unwrap();
        line
    }
}
