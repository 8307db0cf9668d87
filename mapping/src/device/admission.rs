//! Which files may be read and written past their file system.

use std::ffi::OsString;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::device::flush::ext4_folder;
use crate::device::refusal::{Refusal, failed};
use crate::sys::{self, XFLAG_REALTIME, major, minor};

const STATX_IMMUTABLE: u64 = 0x10;
const STATX_APPEND: u64 = 0x20;
const STATX_ENCRYPTED: u64 = 0x800;
const STATX_VERITY: u64 = 0x0010_0000;
const STATX_DAX: u64 = 0x0020_0000;

const FLAG_IMMUTABLE: u32 = 0x10;
const FLAG_APPEND: u32 = 0x20;
const FLAG_ENCRYPT: u32 = 0x800;
const FLAG_JOURNAL_DATA: u32 = 0x4000;
const FLAG_VERITY: u32 = 0x0010_0000;
const FLAG_DAX: u32 = 0x0200_0000;
const FLAG_INLINE_DATA: u32 = 0x1000_0000;

const XFLAG_IMMUTABLE: u32 = 0x8;
const XFLAG_APPEND: u32 = 0x10;
const XFLAG_DAX: u32 = 0x8000;

/// Checks that the disk path is possible for a regular file: what the file is, its attributes, and how its
/// file system is mounted. Says nothing of who else has the file open (the [lease](crate::device::lease) does) nor
/// whether the device can be opened ([`BackingDevice::find`](crate::device::BackingDevice::find) does).
///
/// All of it can change while the file is in use: it is worth looking again.
///
/// # Errors
/// The first reason found.
pub fn admit(file: &File) -> Result<(), Refusal> {
    admit_file(file)?;
    admit_mount(file)
}

/// Checks what the file is and its attributes: the part of [`admit`] that says whether it has a device at all.
pub(crate) fn admit_file(file: &File) -> Result<(), Refusal> {
    let stat = file.metadata().map_err(failed("fstat"))?;
    if !stat.is_file() {
        return Err(Refusal::NotRegular);
    }
    let magic = sys::filesystem(file).map_err(failed("fstatfs"))?;
    if magic != sys::EXT4_MAGIC && magic != sys::XFS_MAGIC {
        return Err(Refusal::FileSystem(name_of(magic)));
    }
    let (major, minor) = (major(stat.dev()), minor(stat.dev()));
    if major == 0 {
        return Err(Refusal::NoDevice { major, minor });
    }
    let attributes = sys::attributes(file).map_err(failed("statx"))?;
    check_attributes(attributes.bits)?;
    check_flags(sys::inode_flags(file).map_err(failed("FS_IOC_GETFLAGS"))?)?;
    check_extended(sys::extended_flags(file).map_err(failed("FS_IOC_FSGETXATTR"))?)?;
    if magic == sys::XFS_MAGIC && moves_always() {
        return Err(Refusal::AlwaysCow);
    }
    Ok(())
}

/// XFS puts every write elsewhere, which debug kernels can be told to do.
fn moves_always() -> bool {
    std::fs::read_to_string("/sys/fs/xfs/debug/always_cow").is_ok_and(|text| text.trim() == "1")
}

/// Checks the options of the mount that the file was opened in, those that are defaults, and who else writes to
/// the file's folder.
fn admit_mount(file: &File) -> Result<(), Refusal> {
    let stat = file.metadata().map_err(failed("fstat"))?;
    let (major, minor) = (major(stat.dev()), minor(stat.dev()));
    let attributes = sys::attributes(file).map_err(failed("statx"))?;
    let mounts = std::fs::read_to_string("/proc/self/mountinfo")
        .map_err(failed("reading /proc/self/mountinfo"))?;
    let device = format!("{major}:{minor}");
    let mount =
        find_mount(&mounts, attributes.mount, &device).ok_or(Refusal::NoDevice { major, minor })?;
    if mount.kind != "ext4" && mount.kind != "xfs" {
        return Err(Refusal::FileSystem(mount.kind.to_owned()));
    }
    check_options(mount.options.split(','))?;
    if mount.kind == "ext4" {
        // Defaults set in the superblock are not among the options of mountinfo, but are listed here.
        let options = ext4_folder(stat.dev()).map(|folder| folder.join("options"));
        if let Some(Ok(options)) = options.map(std::fs::read_to_string) {
            check_options(options.lines())?;
        }
    }
    let path = std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()))
        .map_err(failed("reading /proc/self/fd"))?;
    match find_overlay(&mounts, |folder| lies_in(&path, folder)) {
        Some(folder) => Err(Refusal::Overlaid(folder)),
        None => Ok(()),
    }
}

/// The folder that an overlay writes to, if the file lies in one: truncating it there passes the lease.
fn find_overlay(mounts: &str, contains: impl Fn(&Path) -> bool) -> Option<PathBuf> {
    let overlays = mounts
        .lines()
        .filter_map(|line| line.split_once(" - overlay "));
    let mut folders = overlays.filter_map(|(_, rest)| {
        let options = unescape(rest.rsplit(' ').next()?);
        upper_folder(options.as_bytes())
    });
    folders.find(|folder| contains(folder))
}

/// The folder among an overlay's options, in which a backslash keeps a comma in a name.
fn upper_folder(options: &[u8]) -> Option<PathBuf> {
    let mut option = Vec::new();
    let mut bytes = options.iter().chain(b",");
    while let Some(&byte) = bytes.next() {
        match byte {
            b',' => {
                if let Some(folder) = option.strip_prefix(b"upperdir=") {
                    return Some(PathBuf::from(OsString::from_vec(folder.to_vec())));
                }
                option.clear();
            }
            b'\\' => option.extend(bytes.next()),
            byte => option.push(byte),
        }
    }
    None
}

/// Whether the file at `path` lies in `folder`, which may have another name there: one that is relative to where
/// nobody knows is taken for the same if it ends in the same way.
fn lies_in(path: &Path, folder: &Path) -> bool {
    if path.starts_with(folder) {
        return true;
    }
    let identity = |path: &Path| {
        let stat = std::fs::metadata(path).ok()?;
        Some((stat.dev(), stat.ino()))
    };
    let wanted = folder.is_absolute().then(|| identity(folder)).flatten();
    path.ancestors().skip(1).any(|above| match wanted {
        Some(_) => identity(above) == wanted,
        None => !folder.is_absolute() && above.file_name() == folder.file_name(),
    })
}

/// What mountinfo writes as `\\040` and the like.
fn unescape(text: &str) -> OsString {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, more @ ..] = rest {
        let octal = more.get(..3).filter(|_| *first == b'\\');
        let code = octal
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        bytes.push(code.unwrap_or(*first));
        rest = if code.is_some() { &more[3..] } else { more };
    }
    OsString::from_vec(bytes)
}

fn refuse(bits: u64, reasons: impl IntoIterator<Item = (u64, Refusal)>) -> Result<(), Refusal> {
    let found = reasons.into_iter().find(|(mask, _)| bits & mask != 0);
    found.map_or(Ok(()), |(_, reason)| Err(reason))
}

fn check_attributes(bits: u64) -> Result<(), Refusal> {
    refuse(
        bits,
        [
            (STATX_DAX, Refusal::Dax),
            (STATX_ENCRYPTED, Refusal::Encrypted),
            (STATX_VERITY, Refusal::Verity),
            (STATX_IMMUTABLE, Refusal::Immutable),
            (STATX_APPEND, Refusal::AppendOnly),
        ],
    )
}

fn check_flags(flags: u32) -> Result<(), Refusal> {
    let reasons = [
        (FLAG_DAX, Refusal::Dax),
        (FLAG_ENCRYPT, Refusal::Encrypted),
        (FLAG_VERITY, Refusal::Verity),
        (FLAG_INLINE_DATA, Refusal::Inline),
        (FLAG_JOURNAL_DATA, Refusal::DataJournal),
        (FLAG_IMMUTABLE, Refusal::Immutable),
        (FLAG_APPEND, Refusal::AppendOnly),
    ];
    refuse(
        u64::from(flags),
        reasons.map(|(mask, reason)| (u64::from(mask), reason)),
    )
}

fn check_extended(flags: u32) -> Result<(), Refusal> {
    let reasons = [
        (XFLAG_REALTIME, Refusal::Realtime),
        (XFLAG_DAX, Refusal::Dax),
        (XFLAG_IMMUTABLE, Refusal::Immutable),
        (XFLAG_APPEND, Refusal::AppendOnly),
    ];
    refuse(
        u64::from(flags),
        reasons.map(|(mask, reason)| (u64::from(mask), reason)),
    )
}

fn check_options<'a>(options: impl IntoIterator<Item = &'a str>) -> Result<(), Refusal> {
    const UNSAFE: [&str; 5] = [
        "data=journal",
        "nobarrier",
        "barrier=0",
        "dax",
        "dax=always",
    ];
    let found = options
        .into_iter()
        .map(str::trim)
        .find(|option| UNSAFE.contains(option));
    found.map_or(Ok(()), |option| {
        Err(Refusal::MountOption(option.to_owned()))
    })
}

/// What mountinfo says of one mount.
#[derive(Debug, PartialEq, Eq)]
struct Mount<'a> {
    kind: &'a str,
    options: &'a str,
}

/// The mount of that number, or else any of that device (they share their file system's options).
fn find_mount<'a>(mounts: &'a str, number: Option<u64>, device: &str) -> Option<Mount<'a>> {
    let number = number.map(|number| number.to_string());
    let line = |fits: &dyn Fn(&str, &str) -> bool| {
        mounts.lines().find(|line| {
            let mut fields = line.split(' ');
            let id = fields.next().unwrap_or_default();
            fits(id, fields.nth(1).unwrap_or_default())
        })
    };
    let by_number = number.and_then(|number| line(&|id, of| id == number && of == device));
    let line = by_number.or_else(|| line(&|_, of| of == device))?;
    // Optional fields end with a lone dash; then come type, source and the file system's options.
    let (_, rest) = line.split_once(" - ")?;
    let mut fields = rest.split(' ');
    let kind = fields.next()?;
    Some(Mount {
        kind,
        options: fields.nth(1)?,
    })
}

/// Names for the file systems users are likely to meet.
fn name_of(magic: i64) -> String {
    let name = match magic {
        0x9123_683E => "btrfs",
        0x0102_1994 => "tmpfs",
        0x794C_7630 => "overlay",
        0x6969 => "nfs",
        0xF2F5_2010 => "f2fs",
        0x2FC1_2FC1 => "zfs",
        0x6573_5546 => "fuse",
        0x0102_1997 => "9p",
        0xFF53_4D42 => "cifs",
        _ => return format!("magic {magic:#x}"),
    };
    name.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "\
22 1 252:0 / / rw,relatime shared:1 - ext4 /dev/vda rw,discard
30 22 7:3 / /mnt/a\\040b rw - ext4 /dev/loop3 rw,nobarrier
31 22 7:4 / /mnt/c rw shared:2 master:1 - xfs /dev/loop4 rw,attr2,inode64
";

    #[test]
    fn mounts_are_found_by_number_and_else_by_device() {
        assert_eq!(
            find_mount(MOUNTS, Some(31), "7:4").unwrap(),
            Mount {
                kind: "xfs",
                options: "rw,attr2,inode64"
            }
        );
        assert_eq!(
            find_mount(MOUNTS, Some(99), "7:3").unwrap().options,
            "rw,nobarrier"
        );
        assert_eq!(find_mount(MOUNTS, None, "252:0").unwrap().kind, "ext4");
        assert_eq!(find_mount(MOUNTS, None, "8:1"), None);
    }

    #[test]
    fn a_file_in_a_folder_that_an_overlay_writes_to_is_found() {
        const OVERLAYS: &str = "\
40 22 0:40 / /merged rw - overlay overlay rw,lowerdir=/lower,upperdir=/a\\040b/upper,workdir=/a\\040b/work
41 22 0:41 / /ro rw - overlay overlay rw,lowerdir=/one:/two
";
        let mounts = format!("{MOUNTS}{OVERLAYS}");
        let find = |path| find_overlay(&mounts, |folder| Path::new(path).starts_with(folder));
        assert_eq!(
            find("/a b/upper/vm/image"),
            Some(PathBuf::from("/a b/upper"))
        );
        assert_eq!(find("/a b/upper2/image"), None);
        assert_eq!(find("/lower/image"), None);
        let comma = b"rw,lowerdir=/l,upperdir=/up\\,per,workdir=/w";
        assert_eq!(upper_folder(comma), Some(PathBuf::from("/up,per")));
    }

    #[test]
    fn a_folder_is_known_by_any_of_its_names() {
        let folder = tempfile::tempdir().unwrap();
        let (root, image) = (folder.path(), folder.path().join("upper/vm/image"));
        std::fs::create_dir_all(root.join("upper/vm")).unwrap();
        std::os::unix::fs::symlink(root, root.join("link")).unwrap();
        assert!(lies_in(&image, &root.join("link/upper")));
        assert!(lies_in(&image, &root.join("upper/vm/../../upper")));
        assert!(lies_in(&image, Path::new("./upper")));
        assert!(!lies_in(&image, Path::new("./lower")));
        assert!(!lies_in(&image, &root.join("gone")));
    }

    #[test]
    fn unsafe_mount_options_are_refused_in_both_spellings() {
        assert!(check_options("rw,relatime,data=ordered".split(',')).is_ok());
        assert!(check_options("rw,dax=never".split(',')).is_ok());
        for bad in ["rw,data=journal", "nobarrier", "rw,barrier=0", "dax=always"] {
            assert!(
                matches!(check_options(bad.split(',')), Err(Refusal::MountOption(_))),
                "{bad}"
            );
        }
        assert!(check_options("rw\nbarrier\ndata=journal\n".lines()).is_err());
    }

    #[test]
    fn every_attribute_named_has_its_own_reason() {
        assert!(matches!(
            check_flags(FLAG_JOURNAL_DATA),
            Err(Refusal::DataJournal)
        ));
        assert!(matches!(
            check_flags(FLAG_INLINE_DATA),
            Err(Refusal::Inline)
        ));
        assert!(matches!(
            check_extended(XFLAG_REALTIME),
            Err(Refusal::Realtime)
        ));
        assert!(matches!(
            check_attributes(STATX_VERITY),
            Err(Refusal::Verity)
        ));
        // Extents, journal of directories, "no dump": harmless.
        assert!(check_flags(0x8_0000 | 0x1000 | 0x40).is_ok());
        assert!(check_extended(0x8000_0000).is_ok());
    }

    #[test]
    fn a_pipe_is_refused_with_a_sentence() {
        let null = File::open("/dev/null").unwrap();
        assert!(matches!(admit(&null), Err(Refusal::NotRegular)));
        assert_eq!(
            admit(&null).unwrap_err().to_string(),
            "the image is neither a regular file nor a block device"
        );
    }
}
