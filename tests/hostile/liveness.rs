//! Threads that stand still, as if something held them for ever: here a tracer
//! does.

use std::io::ErrorKind;
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use crate::served::Served;
use rig::held::Held;

fn stands(served: &Served, thread: &str) -> bool {
    let info = served.info();
    let mut standing = info["standing"].as_array().unwrap().iter();
    standing.any(|one| one["thread"] == thread && one["seconds"].as_u64() >= Some(5))
}

#[test]
fn a_worker_that_does_not_turn_is_told_in_the_log_in_info_and_when_it_goes_on() {
    let served = Served::new(&[]);
    served.serves_the_next();
    assert_eq!(served.info()["standing"], serde_json::json!([]));
    let held = Held::thread(served.thread("worker-0"));
    served.said("thread worker-0 stands still");
    assert!(stands(&served, "worker-0"));
    drop(held);
    served.said("thread worker-0 goes on");
    served.info_until("nobody to stand still", |info| {
        info["standing"] == serde_json::json!([])
    });
    served.serves_the_next();
    assert!(served.daemon.terminate().unwrap().success());
}

#[test]
fn a_session_that_does_not_turn_is_told_too() {
    let served = Served::new(&[]);
    // It is watched by then.
    served.serves_the_next();
    // The first thread of a process has its number.
    let held = Held::thread(i32::try_from(served.daemon.pid()).unwrap());
    served.said("thread session stands still");
    assert!(stands(&served, "session"));
    drop(held);
    served.said("thread session goes on");
    served.serves_the_next();
}

#[test]
fn sigterm_ends_a_process_whose_worker_stands_still() {
    let mut served = Served::new(&[]);
    let front = served.attach();
    let held = Held::thread(served.thread("worker-0"));
    served.daemon.signal(libc::SIGTERM).unwrap();
    let line = served.said("not stopped after");
    assert!(line.contains("worker-0"), "{line}");
    // What is held is let go of for the end of its process.
    drop(held);
    assert_eq!(served.daemon.wait().unwrap().code(), Some(1));
    drop(front);
}

#[test]
fn sigterm_ends_a_process_whose_session_stands_still() {
    let mut served = Served::new(&[]);
    served.serves_the_next();
    let held = Held::thread(i32::try_from(served.daemon.pid()).unwrap());
    served.daemon.signal(libc::SIGTERM).unwrap();
    served.said("not stopped after");
    while served.has_thread("watch") {
        std::thread::sleep(Duration::from_millis(10));
    }
    drop(held);
    assert_eq!(served.daemon.wait().unwrap().code(), Some(1));
}

#[test]
fn a_service_manager_hears_of_a_process_as_long_as_all_its_threads_turn() {
    let mut notified = None;
    let served = Served::with(&[], |folder| {
        let path = folder.join("notify");
        notified = Some(UnixDatagram::bind(&path).unwrap());
        vec![
            ("NOTIFY_SOCKET".into(), path.to_str().unwrap().into()),
            ("WATCHDOG_USEC".into(), "1000000".into()),
        ]
    });
    let socket = notified.unwrap();
    let next = || {
        let mut message = [0; 64];
        let length = socket.recv(&mut message)?;
        std::io::Result::Ok(
            String::from_utf8_lossy(&message[..length])
                .trim()
                .to_owned(),
        )
    };
    socket.set_read_timeout(Some(front_end::limit())).unwrap();
    let first: Vec<_> = (0..5).map(|_| next().unwrap()).collect();
    assert!(first.contains(&"READY=1".to_owned()), "{first:?}");
    assert!(first.contains(&"WATCHDOG=1".to_owned()), "{first:?}");
    let held = Held::thread(served.thread("worker-0"));
    served.said("thread worker-0 stands still");
    socket.set_nonblocking(true).unwrap();
    while next().is_ok() {}
    socket.set_nonblocking(false).unwrap();
    socket
        .set_read_timeout(Some(Duration::from_secs(2)))
        .unwrap();
    let more = next().unwrap_err();
    assert_eq!(more.kind(), ErrorKind::WouldBlock);
    drop(held);
    socket.set_read_timeout(Some(front_end::limit())).unwrap();
    assert_eq!(next().unwrap(), "WATCHDOG=1");
    assert!(served.daemon.terminate().unwrap().success());
}

#[test]
fn a_service_manager_that_does_not_listen_keeps_nobody_waiting() {
    let mut notified = None;
    let served = Served::with(&[], |folder| {
        let path = folder.join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        let full = UnixDatagram::unbound().unwrap();
        full.set_nonblocking(true).unwrap();
        while full.send_to(b"X=1", &path).is_ok() {}
        notified = Some(socket);
        vec![
            ("NOTIFY_SOCKET".into(), path.to_str().unwrap().into()),
            ("WATCHDOG_USEC".into(), "1000000".into()),
        ]
    });
    served.serves_the_next();
    assert!(served.daemon.terminate().unwrap().success());
    drop(notified);
}
