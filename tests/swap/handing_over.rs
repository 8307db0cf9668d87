//! An image that another process has, as the source of a migration has it: the
//! next one begins by the file, and takes the disk path when it can.

use extentd::swap::prepare;
use rig::file_systems::{EXT4, Mounted, XFS};

use crate::served::{Guest, IMAGE, Served, complaint, extentd, has_sys_resource, mounted};

/// What does not hold while somebody else has the image.
fn exclusive(fs: &Mounted) -> &'static [&'static str] {
    if fs.is_ext4() {
        &["lease_held", "map_pinned"]
    } else {
        // Whoever has the image could share its blocks.
        &["cow_fork_empty", "lease_held", "map_pinned"]
    }
}
/// What needs a privilege that the tests may not have.
const PRIVILEGED: [&str; 2] = ["io_flusher", "oom_protected"];

/// The properties that do not hold, but for missing privileges.
fn lacking(served: &Served) -> Vec<String> {
    let swap = served.swap();
    let properties = swap["properties"].as_object().unwrap();
    let lacking = properties
        .iter()
        .filter(|(name, property)| {
            property["held"] == false
                && (has_sys_resource() || !PRIVILEGED.contains(&name.as_str()))
        })
        .map(|(name, property)| {
            println!("{name}: {property}");
            name.clone()
        });
    let mut lacking: Vec<_> = lacking.collect();
    lacking.sort();
    lacking
}

#[test]
fn the_next_process_begins_by_the_file_and_takes_the_disk_path_when_the_first_ends() {
    for made in [EXT4, XFS] {
        let Some(fs) = mounted(made) else { return };
        fs.create("disk").set_len(IMAGE).unwrap();
        let path = fs.path("disk");
        let source = Served::start(&path, &[]);
        let mut guest = Guest::attach(&source);
        source.wait_path("disk");
        guest.load(1000);
        let block = vec![0x5a; 8192];
        guest.write(800, &block);

        let destination = Served::start(&path, &[]);
        assert_eq!(lacking(&destination), exclusive(&fs));
        assert_eq!(lacking(&source), exclusive(&fs));
        guest.load(1000);
        drop(guest);
        let mut guest = Guest::attach(&destination);
        assert_eq!(guest.read(800, 8192), block);
        guest.load(1000);
        assert_eq!(lacking(&destination), exclusive(&fs));

        assert!(source.daemon.terminate().unwrap().success());
        // Requests go on while the path is entered.
        while !destination.holds("map_pinned") {
            guest.load(500);
        }
        destination.wait_path("disk");
        // On XFS a write by the file holds its range while the path is entered.
        let may: &[&str] = if fs.is_ext4() {
            &[]
        } else {
            &["no_allocations"]
        };
        let lacking = lacking(&destination);
        assert!(lacking.iter().all(|name| may.contains(&name.as_str())));
        guest.load(1000);
        assert_eq!(guest.read(800, 8192), block);
    }
}

#[test]
fn a_source_that_keeps_its_guest_takes_the_disk_path_again() {
    let Some(fs) = mounted(EXT4) else { return };
    fs.create("disk").set_len(IMAGE).unwrap();
    let source = Served::start(&fs.path("disk"), &[]);
    let mut guest = Guest::attach(&source);
    source.wait_path("disk");
    let destination = Served::start(&fs.path("disk"), &[]);
    source.wait_path("file");
    guest.load(1000);
    assert!(destination.daemon.terminate().unwrap().success());
    while !source.holds("map_pinned") {
        guest.load(500);
    }
    source.wait_path("disk");
    assert!(lacking(&source).is_empty());
}

#[test]
fn an_image_that_somebody_else_has_must_have_been_prepared() {
    let Some(fs) = mounted(EXT4) else { return };
    let path = fs.path("disk");
    let somebody = fs.create("disk");
    somebody.set_len(IMAGE).unwrap();
    let reasons = [
        "somebody else has the image open",
        "32 MiB of it are not written",
        "extentctl prepare",
    ];
    let refused = prepare::find_prepared(&path).unwrap_err().to_string();
    for reason in reasons {
        assert!(refused.contains(reason), "{refused}");
    }
    if has_sys_resource() {
        let said = complaint(&extentd(&path, &["--swap"]));
        assert!(said.contains(&refused), "{said}");
    }
    let served = Served::best_effort(&path);
    let lines = served.daemon.stderr();
    assert!(
        lines
            .iter()
            .any(|line| line.contains("not swap-grade") && line.contains(&refused)),
        "{lines:?}"
    );
    assert!(!served.holds("extents_written"));
    // It was not touched.
    use std::os::unix::fs::MetadataExt;
    assert_eq!(somebody.metadata().unwrap().blocks(), 0);
}

#[test]
fn a_disk_path_that_is_demanded_is_not_waited_for() {
    let Some(fs) = mounted(EXT4) else { return };
    fs.create("disk").set_len(IMAGE).unwrap();
    let _source = Served::start(&fs.path("disk"), &[]);
    let output = extentd(
        &fs.path("disk"),
        &["--swap=best-effort", "--io-path", "disk"],
    );
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        said.contains("--io-path disk: somebody else has the image open"),
        "{said}"
    );
}
