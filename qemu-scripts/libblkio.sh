#!/usr/bin/env bash
# Drives a disk of extentd by libblkio, the library by which QEMU's block layer, nbdkit and others reach vhost-user
# back-ends without a guest. The library of Debian 13 is unpacked, not installed. See --help.
set -euo pipefail
# shellcheck source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

usage() {
    echo "usage: qemu-scripts/libblkio.sh [--seed N]
  --seed N   of the random requests (each run has its own, and says it)
Requests of all kinds in several queues, polled ones among them, each answer compared; rings of all sizes; memory that comes
and goes; restarts under load, a kill, a read-only disk. EXTENTD names the binary, EXTENTD_TEST_DIR the folder of
the image (/var/tmp). Needs python3, and the first time the archive that apt uses."
}

seed=()
while (($# > 0)); do
    case $1 in
    -h | --help) usage && exit 0 ;;
    --seed)
        (($# > 1)) || die "--seed needs a value (see --help)"
        seed=(--seed "$2")
        shift
        ;;
    *) die "unknown argument '$1' (see --help)" ;;
    esac
    shift
done
have python3 || die "python3 is missing"

library=$CACHE/libblkio/usr/lib/x86_64-linux-gnu/libblkio.so.1
if [[ ! -e $library ]]; then
    say "libblkio.sh: fetching libblkio of Debian 13"
    apt=''
    trap 'rm -rf "$apt"' EXIT
    other_release trixie
    fetch libblkio1 libblkio "${of_release[@]}" || exit 1
    rm -rf "$apt"
    trap - EXIT
fi
build_extentd
exec python3 "$SCRIPTS/libblkio.py" --library "$library" --extentd "$EXTENTD" --folder "${EXTENTD_TEST_DIR:-/var/tmp}" "${seed[@]}"
