//! The command line as it is typed.

use clap::CommandFactory;
use clap::error::ErrorKind;

use super::*;

fn parse(line: &str) -> Result<Args, clap::Error> {
    Args::try_parse_from(std::iter::once("extentd").chain(line.split_whitespace()))
}

fn config(line: &str, activated: &[RawFd]) -> Result<Config, ConfigError> {
    parse(line).unwrap().into_config(activated)
}

#[test]
fn the_definition_is_sound() {
    Args::command().debug_assert();
}

#[test]
fn the_documentation_lists_every_option() {
    let page = include_str!("../../../docs/options.md");
    for option in Args::command().get_arguments() {
        let name = option.get_long().unwrap();
        assert!(page.contains(&format!("`--{name}")), "--{name}");
    }
}

#[test]
fn the_shortest_line_gives_the_defaults() {
    let config = config("--socket-path s --blk-file i", &[]).unwrap();
    assert_eq!(config.socket, Socket::Path("s".into()));
    assert_eq!(config.image, PathBuf::from("i"));
    assert!(!config.disk.read_only);
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    assert_eq!(
        (
            config.server.queues,
            config.server.queue_size,
            config.server.workers
        ),
        (256, 32768, cpus.min(256))
    );
    assert_eq!(config.server.cpus, Vec::<usize>::new());
    assert_eq!(config.disk.io_path, IoPath::Auto);
    assert_eq!(config.disk.map_budget, 64 << 20);
    assert!(!config.disk.pin_guest_memory);
    assert_eq!(config.server.poll, PollTime::Adaptive);
    assert_eq!(config.disk.pin_reserve, 0);
    assert_eq!(config.disk.swap, None);
    assert_eq!(config.disk.serial, [0; 20]);
    assert_eq!(config.disk.logical_block_size, None);
    assert!(config.disk.lock);
    assert_eq!(config.control_path, None);
    assert_eq!(config.metrics_listen, None);
}

#[test]
fn every_option_reaches_the_config() {
    let config = config(
        "--fd 5 --blk-file i --read-only --num-queues 4 --queue-size 64 --threads 2 --cpus 2,0-1 \
         --io-path file --map-budget 2M --poll-us 30 --pin-guest-memory --pin-reserve 3M --serial abc --logical-block-size 4096 --lock off --control-path c --metrics-listen 9100",
        &[3],
    )
    .unwrap();
    assert_eq!(config.socket, Socket::Inherited(5));
    assert!(config.disk.read_only);
    assert_eq!(
        (
            config.server.queues,
            config.server.queue_size,
            config.server.workers
        ),
        (4, 64, 2)
    );
    assert_eq!(config.server.cpus, [2, 0, 1]);
    assert_eq!(config.disk.io_path, IoPath::File);
    assert_eq!(config.disk.map_budget, 2 << 20);
    assert!(config.disk.pin_guest_memory);
    assert_eq!(
        config.server.poll,
        PollTime::Fixed(Duration::from_micros(30))
    );
    assert_eq!(config.disk.pin_reserve, 3 << 20);
    assert_eq!(
        config.disk.serial,
        *b"abc\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0"
    );
    assert_eq!(config.disk.logical_block_size, Some(4096));
    assert!(!config.disk.lock);
    assert_eq!(config.control_path, Some("c".into()));
    assert_eq!(
        config.metrics_listen,
        Some(Address::Tcp("127.0.0.1:9100".parse().unwrap()))
    );
}

#[test]
fn vu_45_one_socket_is_chosen() {
    let kind = |line| parse(line).unwrap_err().kind();
    assert_eq!(
        kind("--socket-path s --fd 3 --blk-file i"),
        ErrorKind::ArgumentConflict
    );
    assert_eq!(
        config("--blk-file i", &[]).unwrap_err(),
        ConfigError::NoSocket
    );
    assert_eq!(
        config("--blk-file i", &[3]).unwrap().socket,
        Socket::Activated(3)
    );
    assert_eq!(
        config("--blk-file i", &[3, 4]).unwrap_err(),
        ConfigError::SeveralSockets(2)
    );
    assert_eq!(
        config("--blk-file i --socket-path s", &[3]).unwrap().socket,
        Socket::Path("s".into())
    );
}

#[test]
fn vu_45_capabilities_need_no_other_option() {
    assert!(parse("--print-capabilities").unwrap().print_capabilities);
    assert!(
        parse("--print-capabilities --blk-file i --fd 3")
            .unwrap()
            .print_capabilities
    );
    assert_eq!(
        parse("--socket-path s").unwrap_err().kind(),
        ErrorKind::MissingRequiredArgument
    );
}

#[test]
fn values_outside_their_limits_are_refused() {
    for option in [
        "--num-queues 0",
        "--num-queues 257",
        "--queue-size 8",
        "--queue-size 100",
        "--queue-size 65536",
        "--threads 0",
        "--fd -1",
        "--fd x",
        "--io-path raw",
        "--map-budget 1000",
        "--poll-us -1",
        "--poll-us 1000001",
        "--map-budget many",
        "--pin-reserve some",
        "--logical-block-size 1024",
        "--lock maybe",
        "--sandbox maybe",
        "--log-level loud",
        "--metrics-listen localhost",
        "--serial 123456789012345678901",
        "--serial \u{fc}",
        "--cpus 1-",
        "--cpus 3-1",
        "--cpus 1,1",
        "--cpus 0,0-3",
        "--cpus 1024",
        "--cpus 0-99999999999",
    ] {
        let error = parse(&format!("--blk-file i {option}")).unwrap_err();
        assert_eq!(error.exit_code(), 2, "{option}");
    }
    for option in [
        "--num-queues 256",
        "--queue-size 16",
        "--queue-size 32768",
        "--serial 12345678901234567890",
        "--cpus 1023",
    ] {
        parse(&format!("--blk-file i {option}")).unwrap();
    }
}

#[test]
fn swap_takes_a_grade_and_no_contradiction() {
    let swap = |option: &str| config(&format!("--socket-path s --blk-file i {option}"), &[]);
    assert_eq!(swap("--swap").unwrap().disk.swap, Some(Swap::Demanded));
    assert_eq!(
        swap("--swap=best-effort --io-path file").unwrap().disk.swap,
        Some(Swap::BestEffort)
    );
    assert_eq!(
        swap("--swap --read-only").unwrap_err(),
        ConfigError::SwapReadOnly
    );
    assert_eq!(
        swap("--swap --io-path file").unwrap_err(),
        ConfigError::SwapByFile
    );
    assert!(parse("--blk-file i --swap=soon").is_err());
}

#[test]
fn threads_without_a_queue_are_refused() {
    let line = "--socket-path s --blk-file i --num-queues 2";
    assert_eq!(
        config(&format!("{line} --threads 3"), &[]).unwrap_err(),
        ConfigError::IdleThreads {
            threads: 3,
            queues: 2
        }
    );
    assert_eq!(
        config(&format!("{line} --threads 2"), &[])
            .unwrap()
            .server
            .workers,
        2
    );
}
