//! Serves a file as a disk to whoever connects to a socket, by its map: `loop_server FILE SOCKET`.
//!
//! A request is a line, `read OFFSET BYTES`, `write OFFSET BYTES` (the data follow), `discard OFFSET BYTES` or `sync`;
//! the answer is `ok` or what went wrong, on a line of its own, and what was read.
use std::error::Error;
use std::fs::OpenOptions;
use std::io::{BufReader, prelude::*};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;

use mapping::path::{Buffer, DiskPath, Options, Worker};

fn main() -> Result<(), Box<dyn Error>> {
    let names: Vec<String> = std::env::args().skip(1).collect();
    let [file, socket] = &names[..] else {
        return Err("usage: loop_server FILE SOCKET".into());
    };
    let mut how = OpenOptions::new();
    how.read(true).write(true).custom_flags(libc::O_DIRECT);
    let path = &DiskPath::open(&Arc::new(how.open(file)?), &Options::default())?;
    path.want();
    let listener = UnixListener::bind(socket)?;
    std::thread::scope(|scope| {
        for client in listener.incoming().flatten() {
            // One that sends nonsense is disconnected.
            scope.spawn(move || serve(path, &mut path.worker().ok()?, &client).ok());
        }
        Ok(())
    })
}

fn serve(path: &DiskPath, worker: &mut Worker, client: &UnixStream) -> Result<(), Box<dyn Error>> {
    let (mut lines, mut answers) = (BufReader::new(client), client);
    let (mut line, mut memory) = (String::new(), Buffer::new(1 << 20));
    while lines.read_line(&mut line)? > 0 {
        let words: Vec<&str> = line.split_whitespace().collect();
        let number = |at: usize| words.get(at).map_or(Ok(0), |word| word.parse::<usize>());
        let (offset, len) = (number(1)? as u64, number(2)?);
        let data = memory.get_mut(..len).ok_or("too long")?;
        let result = match words[..] {
            ["read", ..] => worker.read_at(data, offset),
            ["write", ..] => lines
                .read_exact(data)
                .and_then(|()| worker.write_at(data, offset)),
            ["discard", ..] => worker.discard(offset..offset.saturating_add(len as u64)),
            _ => path.sync(),
        };
        let said = result
            .as_ref()
            .map_or_else(ToString::to_string, |()| "ok".into());
        writeln!(answers, "{said}")?;
        if result.is_ok() && words[0] == "read" {
            answers.write_all(data)?;
        }
        line.clear();
    }
    Ok(())
}
