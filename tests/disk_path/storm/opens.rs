//! Those who open the image, or would: each takes the lease away from whoever
//! serves it.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::time::{Duration, Instant};

use rig::model::SECTOR;
use rig::random::Random;

use super::disturber::{Did, Storm};
use super::ioctls::{Mapped, advise};
use super::{LEAST, STILL};

/// How long a burst of opens goes on.
const BURST: Duration = Duration::from_millis(30);

/// Opens and closes without end, with reads through the page cache between.
pub fn burst(storm: &Storm, random: &mut Random) -> Did {
    let end = Instant::now() + BURST;
    let write = random.below(2) == 0;
    while Instant::now() < end {
        let file = OpenOptions::new()
            .read(true)
            .write(write)
            .open(&storm.image)?;
        if random.below(8) == 0 {
            let at = random.below(LEAST - SECTOR);
            file.read_at(&mut [0; SECTOR], at as u64)?;
        }
    }
    Ok(())
}

/// By way of a descriptor that only names the file, which asks for no lease.
pub fn by_descriptor(storm: &Storm, random: &mut Random) -> Did {
    let named = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_PATH)
        .open(&storm.image)?;
    let path = format!("/proc/self/fd/{}", named.as_raw_fd());
    let write = random.below(2) == 0;
    let file = OpenOptions::new().read(true).write(write).open(path)?;
    file.read_at(&mut [0; 4096], 0)?;
    Ok(())
}

/// Without waiting for the lease: refused, or not.
pub fn impatient(storm: &Storm, random: &mut Random) -> Did {
    let opened = OpenOptions::new()
        .read(true)
        .write(random.below(2) == 0)
        .custom_flags(libc::O_NONBLOCK)
        .open(&storm.image);
    match opened {
        Err(error) if error.kind() != ErrorKind::WouldBlock => Err(error),
        _ => Ok(()),
    }
}

/// Wants to destroy the image without waiting, while nobody else disturbs: it
/// must be refused while the disk path is in use.
pub fn destroy(storm: &Storm, random: &mut Random) -> Did {
    if !storm.pace.await_disk() || !storm.lease_is_held()? {
        return Err(ErrorKind::Interrupted.into());
    }
    let mut how = OpenOptions::new();
    how.write(true).custom_flags(libc::O_NONBLOCK);
    let (opened, way) = match random.below(2) {
        0 => (how.truncate(true).open(&storm.image), "truncate"),
        _ => (how.open(&storm.image), "collapse"),
    };
    match opened {
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(()),
        Err(error) => Err(error),
        Ok(_) => {
            storm.violated(format!("the image could be opened to {way} it"));
            Ok(())
        }
    }
}

/// Maps the image and closes it; the pages are used until it is unmapped.
pub fn map(storm: &Storm, random: &mut Random) -> Did {
    let mapped = Mapped::new(&storm.image, LEAST)?;
    mapped.touch(4096 << random.below(8));
    storm.pace.await_requests(100);
    mapped.touch(4096 << random.below(8));
    Ok(())
}

/// Reads all through the page cache.
pub fn read(storm: &Storm, _: &mut Random) -> Did {
    let file = File::open(&storm.image)?;
    let mut bytes = vec![0; 1 << 20];
    let mut at = 0;
    loop {
        match file.read_at(&mut bytes, at)? {
            0 => return Ok(()),
            count => at += count as u64,
        }
    }
}

/// Tells the kernel what will be read, or not.
pub fn hint(storm: &Storm, random: &mut Random) -> Did {
    let all = [
        libc::POSIX_FADV_WILLNEED,
        libc::POSIX_FADV_DONTNEED,
        libc::POSIX_FADV_SEQUENTIAL,
        libc::POSIX_FADV_RANDOM,
        libc::POSIX_FADV_NOREUSE,
    ];
    advise(&File::open(&storm.image)?, all[random.below(all.len())])
}

/// Reads what never changes, as a backup would.
pub fn compare(storm: &Storm, _: &mut Random) -> Did {
    let mut bytes = vec![0; STILL];
    File::open(&storm.image)?.read_exact_at(&mut bytes, 0)?;
    if bytes != storm.still {
        storm.violated("a reader saw other bytes where nothing changes".to_owned());
    }
    Ok(())
}

impl Storm {
    /// Whether somebody holds a lease of the image, as the kernel tells.
    fn lease_is_held(&self) -> io::Result<bool> {
        use std::os::unix::fs::MetadataExt;
        let inode = format!(":{} ", std::fs::metadata(&self.image)?.ino());
        let locks = std::fs::read_to_string("/proc/locks")?;
        let held = |line: &str| {
            line.contains(" LEASE  ACTIVE ") && line.contains(" WRITE ") && line.contains(&inode)
        };
        Ok(locks.lines().any(held))
    }
}
