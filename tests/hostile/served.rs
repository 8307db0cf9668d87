//! A process that serves a small image, and whether it still does.

use std::path::{Path, PathBuf};
use std::time::Duration;

use front_end::codes::protocol;
use front_end::{Daemon, Like, Session, Wanted};
use rig::attached::Attached;
use rig::small_image::{IMAGE, content};
use serde_json::Value;
use tempfile::TempDir;

/// How long anything may take; nothing is proved by it.
const LIMIT: Duration = Duration::from_secs(60);

/// A session with all that is offered there.
pub fn open(socket: &Path) -> Session {
    let wanted = Wanted {
        protocol: protocol::ALL | DEVICE_STATE,
        ..Wanted::default()
    };
    Session::open(socket, Like::Qemu, wanted).unwrap()
}

/// `VHOST_USER_PROTOCOL_F_DEVICE_STATE`
const DEVICE_STATE: u64 = 1 << 19;

/// A process, and what it needs.
pub struct Served {
    pub daemon: Daemon,
    pub files: TempDir,
    control: PathBuf,
}

impl Served {
    /// With these arguments beside those that it needs.
    pub fn new(arguments: &[&str]) -> Self {
        Self::with(arguments, |_| Vec::new())
    }

    /// Likewise, with variables in its environment that may name what lies in
    /// its folder.
    pub fn with(
        arguments: &[&str],
        variables: impl FnOnce(&Path) -> Vec<(String, String)>,
    ) -> Self {
        front_end::set_limit(LIMIT);
        let files = rig::scratch::folder("hostile");
        let path = |name| files.path().join(name);
        let (image, control) = (path("image"), path("control"));
        std::fs::write(&image, content(0, IMAGE)).unwrap();
        let mut all = vec!["--control-path", control.to_str().unwrap()];
        all.extend(arguments);
        let variables = variables(files.path());
        let variables: Vec<_> = variables
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
            .collect();
        let binary = rig::extentd!();
        let daemon =
            Daemon::start_with(&binary, &path("socket"), &image, &all, &variables).unwrap();
        Self {
            daemon,
            files,
            control,
        }
    }

    /// A session with all that is offered.
    pub fn open(&self) -> Session {
        open(self.daemon.socket())
    }

    /// A front-end with a queue.
    pub fn attach(&self) -> Attached {
        Attached::new(self.daemon.socket(), Like::Qemu, Wanted::default())
    }

    /// A correct front-end has what it asks for.
    pub fn serves_the_next(&self) {
        let mut next = self.attach();
        assert_eq!(next.read(8, 4096), content(4096, 4096));
    }

    /// What `extentctl info` says.
    pub fn info(&self) -> Value {
        rig::operator::info(&self.control)
    }

    /// Waits until `info` says this.
    pub fn info_until(&self, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        rig::operator::wait_info(&self.control, what, wanted)
    }

    /// The same process serves a correct front-end, has kept nothing of the
    /// one before, and no byte of the image has changed.
    pub fn is_well(&self) {
        let mut front = self.attach();
        assert_eq!(front.read(7, 4096), content(7 * 512, 4096));
        front.write(7, &content(7 * 512, 512));
        drop(front);
        // Whoever asks next is answered once the last one is forgotten.
        let next = Session::open(self.daemon.socket(), Like::Qemu, Wanted::default()).unwrap();
        next.connection.get_features().unwrap();
        let maps = self.maps();
        assert!(
            !maps.contains("memfd:") && !maps.contains("/lost"),
            "{maps}"
        );
        let image = std::fs::read(self.files.path().join("image")).unwrap();
        assert!(image == content(0, IMAGE));
    }

    /// What it has mapped.
    pub fn maps(&self) -> String {
        std::fs::read_to_string(format!("/proc/{}/maps", self.daemon.pid())).unwrap()
    }

    /// Lines of its log so far with these words.
    pub fn lines(&self, words: &str) -> usize {
        let lines = self.daemon.stderr();
        lines.iter().filter(|line| line.contains(words)).count()
    }

    /// Waits for a line of its log with these words.
    pub fn said(&self, words: &str) -> String {
        self.daemon
            .wait_stderr(|line| line.contains(words))
            .unwrap()
    }

    /// The number of its thread of that name.
    pub fn thread(&self, name: &str) -> i32 {
        self.find_thread(name).unwrap()
    }

    /// It has a thread of that name.
    pub fn has_thread(&self, name: &str) -> bool {
        self.find_thread(name).is_some()
    }

    fn find_thread(&self, name: &str) -> Option<i32> {
        rig::held::thread_named(self.daemon.pid(), name)
    }
}
