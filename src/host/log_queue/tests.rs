use std::sync::{Arc, mpsc};
use std::thread;

use super::*;

/// Writes to a channel that takes nothing until it is read.
struct Pipe(mpsc::SyncSender<Vec<u8>>);

impl Write for Pipe {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.send(bytes.to_vec()).unwrap();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_full_pipe_holds_nobody_up_and_what_was_dropped_is_told() {
    let queue = Arc::new(Queue::default());
    let (sender, receiver) = mpsc::sync_channel(0);
    let writer = Arc::clone(&queue);
    queue.put(format_args!("first"));
    thread::spawn(move || writer.write_all(Pipe(sender)));
    // The writer has taken the first line when it offers it, and then
    // waits with the second until somebody reads.
    assert_eq!(receiver.recv().unwrap(), b"first\n");
    queue.put(format_args!("line 0"));
    let begun = |queue: &Queue| queue.lock().count == 0;
    while !begun(&queue) {
        thread::yield_now();
    }
    // Nobody reads: this returns all the same.
    for number in 1..LINES + 101 {
        queue.put(format_args!("line {number}"));
    }
    let mut text = String::new();
    while !text.contains("dropped") {
        text.push_str(&String::from_utf8(receiver.recv().unwrap()).unwrap());
    }
    assert!(text.starts_with("line 0\n"), "{text}");
    assert!(text.contains("100 lines"), "{text}");
}

#[test]
fn a_line_does_not_wait_for_another_thread_that_logs() {
    let queue = Queue::default();
    let state = queue.lock();
    queue.put(format_args!("dropped"));
    drop(state);
    assert_eq!(queue.dropped.load(Ordering::Relaxed), 1);
    assert_eq!(queue.lock().count, 0);
}

#[test]
fn before_anything_is_served_a_line_waits_for_its_turn_and_not_for_ever() {
    let queue = Queue::default();
    queue.be_patient(true);
    thread::scope(|scope| {
        let state = queue.lock();
        let line = scope.spawn(|| queue.put(format_args!("kept")));
        // Longer than all tries of one who does not wait.
        thread::sleep(Duration::from_millis(100));
        assert!(!line.is_finished());
        drop(state);
    });
    assert_eq!(queue.lock().count, 1);
    let state = queue.lock();
    queue.put(format_args!("dropped"));
    drop(state);
    assert_eq!(queue.dropped.load(Ordering::Relaxed), 1);
}

/// A file on a full disk, until there is room.
struct Full {
    writes: usize,
    to: mpsc::Sender<Vec<u8>>,
}

impl Write for Full {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.writes += 1;
        if self.writes <= 3 {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.to.send(bytes.to_vec()).unwrap();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn what_could_not_be_written_is_told_when_there_is_room() {
    let queue = Arc::new(Queue::default());
    let (to, receiver) = mpsc::channel();
    let writer = Arc::clone(&queue);
    for number in 0..4 {
        queue.put(format_args!("line {number}"));
    }
    thread::spawn(move || writer.write_all(Full { writes: 0, to }));
    assert_eq!(receiver.recv().unwrap(), b"line 3\n");
    let told = String::from_utf8(receiver.recv().unwrap()).unwrap();
    assert!(told.contains(" 3 lines "), "{told}");
}

#[test]
fn long_lines_are_cut_between_characters() {
    let mut line = Line::EMPTY;
    write!(line, "{}\u{fc}end", "x".repeat(LINE - 1)).unwrap();
    assert!(std::str::from_utf8(&line.bytes[..line.len]).is_ok());
    assert!(line.len >= LINE - 1);
}

#[test]
fn a_whole_line_is_longer_than_a_piece() {
    let queue = Arc::new(Queue::default());
    let text = "\u{fc}".repeat(LINE + 1);
    queue.put_whole(&text);
    let (sender, receiver) = mpsc::sync_channel(16);
    let writer = Arc::clone(&queue);
    thread::spawn(move || writer.write_all(Pipe(sender)));
    let mut bytes = Vec::new();
    while bytes.last() != Some(&b'\n') {
        bytes.extend(receiver.recv().unwrap());
    }
    assert_eq!(String::from_utf8(bytes).unwrap(), text + "\n");
}

#[test]
fn draining_waits_for_the_last_line() {
    let queue = Arc::new(Queue::default());
    let (sender, receiver) = mpsc::sync_channel(16);
    let writer = Arc::clone(&queue);
    queue.put(format_args!("one"));
    thread::spawn(move || writer.write_all(Pipe(sender)));
    queue.drain(Duration::from_secs(60));
    assert_eq!(receiver.try_recv().unwrap(), b"one\n");
    // And it does not wait for ever for a writer that there is not.
    let alone = Queue::default();
    alone.put(format_args!("two"));
    alone.drain(Duration::from_millis(1));
}

#[test]
fn once_somebody_is_served_there_is_a_limit_and_what_it_left_out_is_told() {
    let queue = Arc::new(Queue::default());
    queue.be_patient(true);
    let (to, receiver) = mpsc::channel();
    let writer = Arc::clone(&queue);
    thread::spawn(move || writer.write_all(Full { writes: 9, to }));
    let line = |number: usize| {
        queue.put_limited(Kind::Info, format_args!("line {number}"));
        String::from_utf8(receiver.recv().unwrap()).unwrap()
    };
    for number in 0..5000 {
        assert_eq!(line(number), format!("line {number}\n"), "before that");
    }
    queue.be_patient(false);
    for number in 0..5000 {
        queue.put_limited(Kind::Info, format_args!("line {number}"));
        // Room for all that are let through.
        while queue.lock().count > LINES / 2 {
            thread::yield_now();
        }
    }
    queue.put_limited(Kind::Error, format_args!("another kind"));
    queue.drain(Duration::from_secs(60));
    let lines: Vec<String> = receiver
        .try_iter()
        .map(|line| String::from_utf8(line).unwrap())
        .collect();
    assert!(lines.iter().any(|line| line == "another kind\n"));
    let told = lines.iter().find_map(|line| {
        let rest = line.strip_prefix("extentd: warning: ")?;
        let count =
            rest.strip_suffix(" lines of the log were left out: more came than are written\n")?;
        count.parse::<usize>().ok()
    });
    let written = lines
        .iter()
        .filter(|line| line.starts_with("line "))
        .count();
    assert!(written < 5000, "{written}");
    assert_eq!(told, Some(5000 - written));
}

#[test]
fn what_a_terminal_obeys_and_what_ends_a_line_is_written_as_text() {
    let mut line = Line::EMPTY;
    let hostile = "a\x1b[2J\nextentd: error: false\r\u{9b}1m\u{202e}\u{7f}\0z";
    write!(line, "{hostile}").unwrap();
    let text = std::str::from_utf8(&line.bytes[..line.len]).unwrap();
    assert_eq!(
        text,
        r"a\u{1b}[2J\nextentd: error: false\r\u{9b}1m\u{202e}\u{7f}\u{0}z"
    );
    let queue = Queue::default();
    queue.put_whole(hostile);
    let state = queue.lock();
    let first = &state.lines[state.first];
    assert_eq!(&first.bytes[..first.len], text.as_bytes());
    let mut long = Line::EMPTY;
    write!(long, "{}", "\x1b".repeat(LINE)).unwrap();
    assert_eq!(long.len, LINE);
}
