//! A host that forbids io_uring.

use std::os::unix::fs::PermissionsExt;

use front_end::{Daemon, Like, Op, Segment, Wanted};
use rig::attached::{Attached, DATA, assert_ok};
use rig::program::run;
use rig::scratch::folder;
use rig::small_image::{IMAGE, content};

#[test]
fn blk_16_19_26_without_io_uring_plain_calls_do_the_same_and_it_says_so() {
    let files = folder("durability");
    let path = |name| files.path().join(name);
    let (socket, image, wrapper) = (path("socket"), path("image"), path("wrapper"));
    if let Err(reason) = run(std::process::Command::new("strace").arg("-V")) {
        println!("SKIP: no strace: {reason}");
        return;
    }
    // The call fails as seccomp and kernel.io_uring_disabled make it fail.
    let script = format!(
        "#!/bin/sh\nexec strace -D -f --seccomp-bpf -qq -o {} -e trace=io_uring_setup \
         -e inject=io_uring_setup:error=EPERM {} \"$@\"\n",
        path("trace").display(),
        rig::extentd!().display()
    );
    std::fs::write(&wrapper, script).unwrap();
    std::fs::set_permissions(&wrapper, PermissionsExt::from_mode(0o755)).unwrap();
    std::fs::write(&image, content(0, IMAGE)).unwrap();
    let daemon = Daemon::start(&wrapper, &socket, &image, &[]).unwrap();
    let said = daemon.wait_stderr(|line| line.contains("io_uring is refused"));
    assert!(said.unwrap().contains("plain system calls"));

    let mut front = Attached::new(&socket, Like::Qemu, Wanted::default());
    let mut expected = content(0, IMAGE);
    for sector in [0, 3, 777, 8000] {
        let start = usize::try_from(sector).unwrap() * 512;
        assert_eq!(front.read(sector, 8192), expected[start..start + 8192]);
        front.write(sector, &[0x42; 1536]);
        expected[start..start + 1536].fill(0x42);
    }
    let zeroes = Segment {
        sector: 100,
        sectors: 100,
        flags: 1,
    };
    let done = front.driver.segments(Op::WriteZeroes, DATA, &[zeroes]);
    assert_ok(done.unwrap(), 1);
    expected[100 * 512..200 * 512].fill(0);
    assert_ok(front.driver.flush().unwrap(), 1);
    assert!(std::fs::read(&image).unwrap() == expected);
    drop(front);
    assert!(daemon.terminate().unwrap().success());
}
