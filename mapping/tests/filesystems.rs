//! Real file systems: reading a file through its map equals reading the file, byte for byte, and what is
//! opaque is so for the documented reason. Needs root and loop devices; skips with the reason otherwise.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::cast_possible_truncation
)]

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use mapping::device::{BackingDevice, Refusal};
use mapping::{Config, Extent, ExtentSource, Fiemap, Kind, Lookup, Map, Reason};
use rig::file_systems::{
    BTRFS, BTRFS_COMPRESSED, EXT4, EXT4_1K, EXT4_BIGALLOC, EXT4_INLINE, Made, Mounted, XFS,
};
use rig::files::{fallocate, open_direct, pattern, punch, read_all, reflink};

const MIB: u64 = 1 << 20;

/// Bytes of the file by kind.
type Tally = BTreeMap<String, u64>;

/// All extents of the file, holes included, through a map with small windows.
fn extents_of(file: &Arc<File>) -> Vec<Extent> {
    let size = file.metadata().unwrap().len();
    let map = Map::new(
        size,
        Config {
            window: 256 << 10,
            ..Config::default()
        },
    )
    .unwrap();
    map.enable();
    map.load(&Fiemap::new(Arc::clone(file)), 0..size).unwrap();
    let mut reader = map.reader().unwrap();
    let mut extents = Vec::new();
    let mut at = 0;
    while at < size {
        let Lookup::Found(extent) = reader.lookup(at) else {
            panic!("byte {at} is missing")
        };
        assert_eq!(extent.start, at, "extents leave no gap");
        at = extent.end();
        extents.push(extent);
    }
    assert_eq!(at, size, "clamped to the file");
    extents
}

fn tally(extents: &[Extent]) -> Tally {
    let mut tally = Tally::new();
    for extent in extents {
        *tally.entry(extent.kind.to_string()).or_default() += extent.len;
    }
    tally
}

/// Reads the file through its map: written and shared extents from the device, zeros elsewhere, opaque ones
/// from the file. Compares with the file and returns what kinds there were.
fn check(fs: &Mounted, name: &str) -> Tally {
    let file = Arc::new(open_direct(fs.path(name)));
    let device = BackingDevice::find(&file).unwrap();
    let proof = device.prove(&file).unwrap();
    let extents = extents_of(&file);
    let buffered = File::open(fs.path(name)).unwrap();
    // The file is read after the disk, so that the disk is not compared with what it was made of.
    let raw = File::open(device.path().unwrap()).unwrap();
    drop_pages(&raw);
    let mut ours = vec![0; file.metadata().unwrap().len() as usize];
    for extent in &extents {
        let part = &mut ours[extent.start as usize..extent.end() as usize];
        match extent.kind {
            Kind::Written | Kind::Shared => raw.read_exact_at(part, extent.disk).unwrap(),
            Kind::Hole | Kind::Unwritten => {}
            Kind::Opaque(_) => buffered.read_exact_at(part, extent.start).unwrap(),
        }
    }
    let theirs = read_all(&buffered);
    if let Some(at) = (0..ours.len()).find(|&at| ours[at] != theirs[at]) {
        let extent = extents
            .iter()
            .find(|extent| extent.range().contains(&(at as u64)));
        panic!("{}: byte {at} of {name} differs: {extent:?}", fs.made.name);
    }
    let tally = tally(&extents);
    if tally
        .keys()
        .any(|kind| kind == "written" || kind == "shared")
    {
        assert!(proof.blocks > 0, "nothing was compared");
    }
    tally
}

fn drop_pages(file: &File) {
    use std::os::fd::AsRawFd;
    // SAFETY: no memory is involved.
    #[allow(unsafe_code)]
    unsafe {
        libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED)
    };
}

fn write(file: &File, offset: u64, len: u64) {
    file.write_all_at(&pattern(1, offset, len as usize), offset)
        .unwrap();
}

/// Every shape an image can have, in one file each.
fn shapes(fs: &Mounted) {
    let dense = fs.create("dense");
    write(&dense, 0, 9 * MIB + 1234);
    let fragmented = fs.create("fragmented");
    write(&fragmented, 0, 16 * MIB);
    fragmented.sync_all().unwrap();
    for offset in (0..16 * MIB).step_by(128 << 10) {
        punch(&fragmented, offset, 64 << 10);
    }
    // Filled again in another order, so that the disk's order is not the file's.
    for offset in (0..64).rev().map(|part| part * (128 << 10)) {
        write(&fragmented, offset, 64 << 10);
        fragmented.sync_data().unwrap();
    }
    let sparse = fs.create("sparse");
    sparse.set_len(64 * MIB + 512).unwrap();
    for offset in [0, 5 * MIB + 4096, 31 * MIB, 64 * MIB] {
        write(&sparse, offset, 512);
    }
    let unwritten = fs.create("unwritten");
    fallocate(&unwritten, 0, 0, 10 * MIB).unwrap();
    write(&unwritten, 3 * MIB, 70_000);
    write(&unwritten, 10 * MIB - 5000, 5000);
    let beyond = fs.create("beyond");
    write(&beyond, 0, MIB);
    fallocate(&beyond, libc::FALLOC_FL_KEEP_SIZE, 0, 8 * MIB).unwrap();
    for name in ["dense", "fragmented", "sparse", "unwritten", "beyond"] {
        File::open(fs.path(name)).unwrap().sync_all().unwrap();
    }
}

const SHAPES: [&str; 5] = ["dense", "fragmented", "sparse", "unwritten", "beyond"];

fn trusted(made: Made) -> Option<Mounted> {
    let fs = Mounted::new(made)?;
    shapes(&fs);
    for name in SHAPES {
        let tally = check(&fs, name);
        let opaque: Vec<_> = tally
            .keys()
            .filter(|kind| kind.starts_with("opaque"))
            .collect();
        assert!(opaque.is_empty(), "{}: {name}: {opaque:?}", made.name);
    }
    let kinds = check(&fs, "unwritten");
    assert!(
        kinds["written"] >= 75_000 && kinds["unwritten"] > 8 * MIB,
        "{kinds:?}"
    );
    let kinds = check(&fs, "sparse");
    assert!(kinds["hole"] > 63 * MIB, "{kinds:?}");
    let kinds = check(&fs, "beyond");
    assert_eq!(
        kinds.values().sum::<u64>(),
        MIB,
        "blocks beyond the end are not part of the file"
    );
    let extents = extents_of(&Arc::new(open_direct(fs.path("fragmented"))));
    assert!(
        extents.len() > 128,
        "fragmented: only {} extents",
        extents.len()
    );
    Some(fs)
}

#[test]
fn ext4_reads_the_same_through_its_map() {
    trusted(EXT4);
}

#[test]
fn ext4_with_blocks_of_1k_reads_the_same_through_its_map() {
    let Some(fs) = trusted(EXT4_1K) else { return };
    let small = fs.create("small");
    small.set_len(MIB).unwrap();
    for offset in (1024..MIB).step_by(3072) {
        write(&small, offset, 1024);
    }
    small.sync_all().unwrap();
    check(&fs, "small");
    let extents = extents_of(&Arc::new(open_direct(fs.path("small"))));
    assert!(
        extents.iter().any(|extent| extent.start % 4096 != 0),
        "extents of 1 KiB"
    );
    let device = BackingDevice::find(&open_direct(fs.path("small"))).unwrap();
    assert_eq!(
        device.page_block(),
        1024,
        "raw writes may be as small as the file system's blocks"
    );
}

#[test]
fn ext4_with_clusters_reads_the_same_through_its_map() {
    trusted(EXT4_BIGALLOC);
}

#[test]
fn xfs_reads_the_same_through_its_map_and_tells_shared_blocks() {
    let Some(fs) = trusted(XFS) else { return };
    let (from, to) = (fs.create("from"), fs.create("to"));
    write(&from, 0, 4 * MIB);
    from.sync_all().unwrap();
    reflink(&from, &to).unwrap();
    assert_eq!(check(&fs, "to")["shared"], 4 * MIB);
    write(&to, MIB, 64 << 10);
    to.sync_all().unwrap();
    let kinds = check(&fs, "to");
    // A preallocation around the copy may stay, but is told as shared until it is used.
    assert_eq!(kinds["written"], 64 << 10, "{kinds:?}");
    assert_eq!(kinds["shared"], 4 * MIB - (64 << 10));
    assert_eq!(
        check(&fs, "from")["shared"],
        4 * MIB - (64 << 10),
        "alone again where the other was copied"
    );
    // A preallocation shared with nobody: unwritten blocks cloned.
    let (from, to) = (fs.create("from2"), fs.create("to2"));
    fallocate(&from, 0, 0, MIB).unwrap();
    from.sync_all().unwrap();
    reflink(&from, &to).unwrap();
    let kinds = check(&fs, "to2");
    assert_eq!(
        kinds
            .keys()
            .filter(|kind| *kind != "unwritten" && *kind != "hole")
            .count(),
        0,
        "{kinds:?}"
    );
}

#[test]
fn delayed_blocks_are_opaque_unless_written_out_first() {
    for made in [EXT4, XFS] {
        let Some(fs) = Mounted::new(made) else {
            continue;
        };
        let file = fs.create("delayed");
        write(&file, 0, MIB);
        let mut kinds = Vec::new();
        let source =
            Fiemap::new(Arc::new(file.try_clone().unwrap())).sync(mapping::SyncPolicy::Never);
        source
            .fill(0..MIB, &mut |extent| {
                kinds.push(extent.kind);
                std::ops::ControlFlow::Continue(())
            })
            .unwrap();
        // The kernel may have written it out already, but what it has not is opaque.
        let fits = |kind: &Kind| {
            matches!(
                kind,
                Kind::Opaque(Reason::NotAllocated) | Kind::Written | Kind::Unwritten
            )
        };
        assert!(kinds.iter().all(fits), "{kinds:?}");
        assert!(
            kinds.contains(&Kind::Opaque(Reason::NotAllocated)),
            "{}: {kinds:?}",
            made.name
        );
        let kinds = tally(&extents_of(&Arc::new(file)));
        assert_eq!(kinds.get("written"), Some(&MIB), "{kinds:?}");
    }
}

#[test]
fn a_file_inside_its_inode_is_opaque_and_refused() {
    let Some(fs) = Mounted::new(EXT4_INLINE) else {
        return;
    };
    let file = fs.create("inline");
    write(&file, 0, 60);
    file.sync_all().unwrap();
    let file = Arc::new(file);
    assert_eq!(
        tally(&extents_of(&file)).into_keys().collect::<Vec<_>>(),
        ["opaque (inside metadata)"]
    );
    assert!(matches!(BackingDevice::find(&file), Err(Refusal::Inline)));
    shapes(&fs);
    check(&fs, "dense");
}

#[test]
fn btrfs_is_refused_and_its_opaque_extents_have_their_reasons() {
    for made in [BTRFS, BTRFS_COMPRESSED] {
        let Some(fs) = Mounted::new(made) else {
            continue;
        };
        shapes(&fs);
        let inline = fs.create("inline");
        write(&inline, 0, 100);
        inline.sync_all().unwrap();
        let compressed = fs.create("compressed");
        compressed
            .write_all_at(&vec![7; 4 * MIB as usize], 0)
            .unwrap();
        compressed.sync_all().unwrap();
        for name in SHAPES {
            let file = Arc::new(File::open(fs.path(name)).unwrap());
            assert!(
                matches!(BackingDevice::find(&file), Err(Refusal::FileSystem(name)) if name == "btrfs")
            );
            let bytes = read_all(&file);
            for extent in extents_of(&file) {
                let part = &bytes[extent.start as usize..extent.end() as usize];
                match extent.kind {
                    Kind::Hole | Kind::Unwritten => {
                        assert!(part.iter().all(|byte| *byte == 0), "{name}: {extent:?}")
                    }
                    Kind::Written | Kind::Shared => {}
                    Kind::Opaque(reason) => {
                        assert!(
                            matches!(reason, Reason::Encoded | Reason::Inline),
                            "{name}: {extent:?}"
                        );
                    }
                }
            }
        }
        let kinds = tally(&extents_of(&Arc::new(inline)));
        assert!(kinds.contains_key("opaque (inside metadata)"), "{kinds:?}");
        let kinds = tally(&extents_of(&Arc::new(compressed)));
        let encoded = kinds
            .get("opaque (compressed or encoded)")
            .copied()
            .unwrap_or(0);
        let want = if made.options.is_empty() { 0 } else { 4 * MIB };
        assert_eq!(encoded, want, "{}: {kinds:?}", made.name);
    }
}
