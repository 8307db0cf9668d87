//! One scrape for all disks of a host: asks their control sockets at once, and
//! tells of each what it says, or that it does not answer.
//!
//! One thread has all clients, as in a disk's own metrics. Another one asks the
//! disks, once for all who want to know meanwhile: however many scrape, a disk
//! is asked by one of them at a time.

pub mod gather;

use std::io;
use std::mem;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use super::clients::{Bounds, Client};
use super::http::{self, Asked, Form};
use super::http_socket::{self, Listener, Party, Stream};
use super::metrics::{self, Format, Scraped};
use super::metrics_listener;
use super::serving::{self, Heard, Service};
use crate::host::limits;
use crate::host::socket::SocketFile;
use crate::host::sys;
use crate::options::address::Address;

/// A scrape of hundreds of disks is megabytes.
const BOUNDS: Bounds = Bounds {
    answers: 256 << 20,
    ..metrics_listener::BOUNDS
};

/// A listening exporter.
#[derive(Debug)]
pub struct Exporter {
    listener: Listener,
    /// Where it listens.
    address: Address,
    /// Removed with it.
    _file: Option<SocketFile>,
}

impl Exporter {
    /// Listens there.
    ///
    /// # Errors
    /// One line: why that is not possible.
    pub fn listen(address: &Address) -> Result<Self, String> {
        // Each disk takes a descriptor.
        limits::raise();
        let (listener, address, file) =
            http_socket::bind(address, "--listen").map_err(|error| error.to_string())?;
        Ok(Self {
            listener,
            address,
            _file: file,
        })
    }

    /// Where it listens; of a port that the host chose, with its number.
    #[must_use]
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// Serves for the life of the process. `disks` names the control sockets,
    /// each time anew, and none of them is waited for longer than `patience`.
    ///
    /// # Errors
    /// It could not begin.
    pub fn serve(
        self,
        disks: impl Fn() -> Vec<PathBuf> + Send + Sync + 'static,
        patience: Duration,
    ) -> io::Error {
        let begun = self.listener.never_wait().and_then(|()| sys::event());
        let event = match begun {
            Ok(event) => event,
            Err(error) => return error,
        };
        let service = Scrapes {
            listener: self.listener,
            ask: Arc::new(move || gather::gather(&disks(), patience)),
            outcome: Arc::new(Outcome {
                disks: Mutex::default(),
                event,
            }),
            waiting: Vec::new(),
            asking: false,
        };
        serving::serve(service, BOUNDS, "exporter")
    }
}

/// What was heard of the disks, once it is.
struct Outcome {
    disks: Mutex<Option<Vec<Scraped>>>,
    /// Readable then.
    event: OwnedFd,
}

struct Scrapes {
    listener: Listener,
    ask: Arc<dyn Fn() -> Vec<Scraped> + Send + Sync>,
    outcome: Arc<Outcome>,
    /// Clients that wait for it.
    waiting: Vec<(u64, Form)>,
    /// The disks are being asked.
    asking: bool,
}

impl Service for Scrapes {
    type Stream = Stream;
    type Peer = Party;

    const ONE_ANSWER: bool = true;

    fn accept(&self) -> io::Result<(Stream, Party)> {
        self.listener.accept()
    }

    fn listener(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }

    fn same(one: Party, other: Party) -> bool {
        one == other
    }

    fn hear(&mut self, client: &mut Client<Stream, Party>) -> Heard {
        if !client.ended && !http::is_whole(&client.received) {
            return Heard::More;
        }
        match http::read(&client.received) {
            Asked::Other(answer) => Heard::Last(answer),
            Asked::Metrics(form) => match self.begin() {
                Ok(()) => {
                    self.waiting.push((client.number, form));
                    Heard::Served
                }
                Err(error) => {
                    log::warn!("no thread asks the disks: {error}");
                    Heard::Last(form.refusal())
                }
            },
        }
    }

    fn wakers(&self) -> Vec<BorrowedFd<'_>> {
        vec![self.outcome.event.as_fd()]
    }

    fn finished(&mut self) -> Vec<(u64, Vec<u8>)> {
        if !sys::event_take(&self.outcome.event) {
            return Vec::new();
        }
        let disks = self.outcome.disks.lock();
        let Some(disks) = disks.unwrap_or_else(PoisonError::into_inner).take() else {
            return Vec::new();
        };
        self.asking = false;
        let waiting = mem::take(&mut self.waiting);
        let is_asked = |format| waiting.iter().any(|(_, form)| form.format == format);
        let text = |format| match is_asked(format) {
            true => metrics::exposition(disks.clone(), format),
            false => String::new(),
        };
        let open_metrics = text(Format::OpenMetrics);
        let prometheus = text(Format::Prometheus);
        let answer = |(client, form): &(u64, Form)| {
            let text = match form.format {
                Format::OpenMetrics => &open_metrics,
                Format::Prometheus => &prometheus,
            };
            (*client, form.answer(text))
        };
        waiting.iter().map(answer).collect()
    }
}

impl Scrapes {
    /// Has the disks asked, unless they are being asked already.
    fn begin(&mut self) -> io::Result<()> {
        if self.asking {
            return Ok(());
        }
        let (ask, outcome) = (Arc::clone(&self.ask), Arc::clone(&self.outcome));
        thread::Builder::new()
            .name("asking".to_owned())
            .spawn(move || {
                let disks = ask();
                let place = outcome.disks.lock();
                *place.unwrap_or_else(PoisonError::into_inner) = Some(disks);
                sys::event_set(&outcome.event);
            })?;
        self.asking = true;
        Ok(())
    }
}
