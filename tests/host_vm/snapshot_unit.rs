//! The unit that shows a snapshot to readers of NBD, under a real systemd.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use front_end::LIMIT;

use crate::inside::Stage;
use crate::units::{EXTENTD, IMAGES, pid, print_log, property, systemctl};

/// As `systemd-escape vm.snapshots/monday` has it.
const NAME: &str = "vm.snapshots-monday";
const BYTES: usize = 1 << 20;

/// Reads the whole export, in the oldest way that the protocol has.
fn read_all(socket: &Path) -> Vec<u8> {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream
        .set_read_timeout(Some(LIMIT.min(Duration::from_secs(60))))
        .unwrap();
    let mut greeting = [0; 18];
    stream.read_exact(&mut greeting).unwrap();
    assert_eq!(&greeting[..16], b"NBDMAGICIHAVEOPT");
    // Without zeros at the end; NBD_OPT_EXPORT_NAME, of no name.
    let mut ask = 3_u32.to_be_bytes().to_vec();
    ask.extend(b"IHAVEOPT");
    ask.extend([1_u32, 0].map(u32::to_be_bytes).concat());
    stream.write_all(&ask).unwrap();
    let mut export = [0; 10];
    stream.read_exact(&mut export).unwrap();
    let size = u64::from_be_bytes(export[..8].try_into().unwrap());
    assert_eq!(usize::try_from(size).unwrap(), BYTES);
    let mut read = 0x2560_9513_u32.to_be_bytes().to_vec();
    read.extend([0; 4 + 8 + 8]);
    read.extend(u32::try_from(BYTES).unwrap().to_be_bytes());
    stream.write_all(&read).unwrap();
    let mut reply = [0; 16];
    stream.read_exact(&mut reply).unwrap();
    assert_eq!(&reply[..8], b"\x67\x44\x66\x98\0\0\0\0");
    let mut data = vec![0; BYTES];
    stream.read_exact(&mut data).unwrap();
    data
}

pub fn serve_a_snapshot(_stage: &Stage) {
    let folder = Path::new(IMAGES).join("vm.snapshots");
    fs::create_dir_all(&folder).unwrap();
    let data: Vec<u8> = (0..BYTES)
        .map(|at| u8::try_from(at / 512 % 251).unwrap())
        .collect();
    for name in ["sunday", "monday"] {
        let path = folder.join(name);
        fs::write(&path, &data).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        chown(&path, Some(EXTENTD), Some(EXTENTD)).unwrap();
    }
    let since = folder.join("sunday");
    let options = format!("EXTENTD_NBD_OPTIONS=--since {}\n", since.display());
    fs::create_dir_all("/etc/extentd").unwrap();
    fs::write(format!("/etc/extentd/{NAME}.nbd.conf"), options).unwrap();

    let [service, socket] = ["service", "socket"].map(|kind| format!("extentd-nbd@{NAME}.{kind}"));
    systemctl(&["start", &socket]);
    assert_eq!(property(&service, "ActiveState"), "inactive");
    let path = Path::new("/run/extentd").join(format!("{NAME}.nbd"));
    assert_eq!(
        fs::metadata(&path).unwrap().permissions().mode() & 0o777,
        0o600
    );
    assert_eq!(read_all(&path), data);
    assert_eq!(property(&service, "ActiveState"), "active");
    let status = fs::read_to_string(format!("/proc/{}/status", pid(&service))).unwrap();
    let value = |key: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(key));
        line.unwrap().split_whitespace().next().unwrap().to_owned()
    };
    assert_eq!(value("Uid:"), EXTENTD.to_string());
    assert_eq!((&*value("NoNewPrivs:"), &*value("Seccomp:")), ("1", "2"));
    let capabilities = u64::from_str_radix(&value("CapBnd:"), 16).unwrap();
    assert_eq!(capabilities, 0);
    systemctl(&["restart", &service]);
    assert_eq!(read_all(&path), data);
    systemctl(&["stop", &service, &socket]);
    assert_eq!(property(&service, "Result"), "success");
    assert!(!path.exists());
    print_log(&service);
}
