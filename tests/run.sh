#!/usr/bin/env bash
# Installs what the tests need and runs all of them. The last line sums up: N passed, N failed, N skipped.
set -uo pipefail
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$ROOT" || exit 1
# shellcheck source=results.sh
. tests/results.sh

case ${1:-} in
"") ;;
-h | --help)
    echo "usage: tests/run.sh
Runs format, lints, documentation, unit and integration tests with real guests, the quick start, the Debian
package in a fresh system, model checks, the map under a thread sanitizer, hostile cases under an address sanitizer and a short run of each fuzz target. Root is needed to install packages and for loop devices.
Environment:
  EXTENTD_TEST_DIR   the folder for test images, which other users can pass (default: a new one in /var/tmp)
  FUZZ_SECONDS       how long each fuzz target runs (default 10)
  EXTENTD_TEST_KILLS, EXTENTD_TEST_GUEST_KILLS, EXTENTD_TEST_MIGRATIONS
                     how often a process is killed or a guest migrated (default 50, 12 and 6)
  EXTENTD_TEST_SNAPSHOTS, EXTENTD_TEST_GUEST_SNAPSHOTS
                     snapshots under load, and of a guest's file system (default 20 and 5)
  EXTENTD_TEST_STORM_SECONDS
                     how long each file system's disk path is disturbed in every way at once (default 8, in CI 20)
  EXTENTD_TEST_BACKUPS
                     rounds of backups of a disk at work (default 10)
  EXTENTD_TEST_DOWNTIMES
                     rounds of migrations beside qemu-storage-daemon (default 2)
  EXTENTD_TEST_LATENCY_ROUNDS
                     how often latency is measured while a host swaps (default 1)
  EXTENTD_TEST_CRYPT_ROUNDS
                     how often the cost of dm-crypt is measured (default 1)
  EXTENTD_TEST_LIMITS=long
                     measure limits at every rate and depth for ten seconds each, instead of a few (default: a few)
  CI=true            a skipped test counts as failed"
    exit 0
    ;;
*)
    echo "run.sh: unknown argument '$1' (see --help)" >&2
    exit 2
    ;;
esac

if ! command -v cargo >/dev/null; then
    echo "run.sh: cargo is missing: install Rust first" >&2
    exit 1
fi
TARGET=${CARGO_TARGET_DIR:-$ROOT/target}
LOGS=$TARGET/test-logs
rm -rf "$LOGS"
mkdir -p "$LOGS"

# Everything that the tests start inherits this mark, and their files live in one folder: so what they
# leave behind can be told from the rest of the machine.
EXTENTD_TEST_RUN=run-$$-$(date +%s)
export EXTENTD_TEST_RUN
own_dir=''
if [[ -z ${EXTENTD_TEST_DIR:-} ]]; then
    own_dir=$(mktemp -d /var/tmp/extentd-tests.XXXXXX)
    # Attackers of the tests are other users, who have to come through.
    chmod 711 "$own_dir"
    export EXTENTD_TEST_DIR=$own_dir
fi
trap '[[ -z $own_dir ]] || rm -rf --one-file-system "$own_dir"' EXIT
EXTENTD_TEST_DIR=$(cd "$EXTENTD_TEST_DIR" && pwd -P) || exit 1
export TMPDIR=$EXTENTD_TEST_DIR/tmp
mkdir -p "$TMPDIR"
groups_before=$(own_groups)

formatted() {
    cargo fmt --all --check && rustfmt --edition 2024 --check tests/guest/verifier.rs || return 1
    cargo fmt --manifest-path tests/fuzz/Cargo.toml --check
}
linted() {
    cargo clippy --workspace --all-targets -- -D warnings || return 1
    # The programs as they are shipped, without the switches for tests.
    cargo clippy --workspace -- -D warnings
}
documented() { RUSTDOCFLAGS=-Dwarnings cargo doc --workspace --no-deps; }
# How they are looked at is in .shellcheckrc; those of guests and of the package run in other shells.
scripts_sound() {
    shellcheck tests/*.sh qemu-scripts/*.sh packaging/*.sh .ci/run || return 1
    shellcheck --shell=dash qemu-scripts/guest-init qemu-scripts/guest-agent packaging/debian/{postinst,prerm,postrm}
}
tested() {
    if [[ ${CI:-} == true ]]; then
        export EXTENTD_TEST_STORM_SECONDS=${EXTENTD_TEST_STORM_SECONDS:-20}
    fi
    # The time limit only keeps a stuck test from holding the run for ever.
    timeout 4800 cargo test --workspace --no-fail-fast -- --show-output
}
# Model checks of the lock-free parts, in the crates that have them.
modelled() {
    local packages=() model
    for model in */tests/loom.rs; do
        [[ -e $model ]] && packages+=(-p "$(sed -n '0,/^name = /s/^name = "\(.*\)"/\1/p' "${model%%/*}/Cargo.toml")")
    done
    ((${#packages[@]} > 0)) || return 0
    RUSTFLAGS="--cfg loom" LOOM_MAX_PREEMPTIONS=3 CARGO_TARGET_DIR=$TARGET/loom CARGO_PROFILE_RELEASE_LTO=off \
        timeout 900 cargo test --release "${packages[@]}" --test loom -- --show-output
}
# The map's stress test under a thread sanitizer. The standard library comes without instrumentation: --cfg tsan
# brings locks that it sees, and the list of suppressions names what is reported all the same.
raced() {
    TSAN_OPTIONS="suppressions=$ROOT/mapping/tests/tsan.supp" MAPPING_STRESS_MS=5000 \
        RUSTFLAGS="--cfg tsan -Zsanitizer=thread -Cunsafe-allow-abi-mismatch=sanitizer" CARGO_TARGET_DIR=$TARGET/tsan \
        timeout 900 cargo +nightly test --target x86_64-unknown-linux-gnu -p extentd-mapping --test stress -- --show-output
}
# Every hostile case against a process under an address sanitizer. What is freed is held back for a while, and leaks
# are counted by the suite itself.
sanitized() {
    RUSTFLAGS="-Zsanitizer=address -Cunsafe-allow-abi-mismatch=sanitizer" CARGO_TARGET_DIR=$TARGET/asan \
        timeout 1200 cargo +nightly build --target x86_64-unknown-linux-gnu --bin extentd || return 1
    EXTENTD=$TARGET/asan/x86_64-unknown-linux-gnu/debug/extentd ASAN_OPTIONS=detect_leaks=0:quarantine_size_mb=64 \
        timeout 900 cargo test --test hostile every_case_is_withstood -- --show-output
}
quick_start() {
    # The binary that the tests ran with; the quick start itself would build another.
    EXTENTD=$TARGET/debug/extentd qemu-scripts/quickstart.sh
}

# Machines that the suite of real guests has not.
guests() { EXTENTD=$TARGET/debug/extentd qemu-scripts/guests.sh modern transitional microvm disks uefi hugepages numa old; }
# The client of programs that reach such disks without a guest.
by_libblkio() { EXTENTD=$TARGET/debug/extentd qemu-scripts/libblkio.sh; }

stage setup qemu-scripts/setup.sh --tests
check format formatted
check scripts scripts_sound
check lints linted
check documentation documented
suite tests tested
suite models modelled
check "quick start" quick_start
check guests guests
check libblkio by_libblkio
check package packaging/test-package.sh
check crates cargo package --workspace --no-verify --allow-dirty
if cargo +nightly --version >/dev/null 2>&1; then
    suite races raced
    suite "hostile cases, sanitized" sanitized
    # shellcheck source=fuzz.sh
    . tests/fuzz.sh
    fuzz_all
else
    skip races "no nightly toolchain"
    skip "hostile cases, sanitized" "no nightly toolchain"
    skip fuzz "no nightly toolchain"
fi
check "nothing left behind" nothing_left
summary
