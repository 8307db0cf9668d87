#!/usr/bin/env bash
# Builds the Debian package and tries it in a fresh Debian 12 in a folder of its own: lintian has nothing to say, it is
# installed, its extentd serves a front-end, is upgraded under the front-end's load without loss, and is purged with
# nothing left but images. Needs root, and mmdebstrap, lintian and dpkg-dev, which qemu-scripts/setup.sh --tests installs.
#
# All mounts and processes are in namespaces of their own, which end with this script, however it ends.
set -euo pipefail
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$ROOT"
TARGET=${CARGO_TARGET_DIR:-$ROOT/target}
BASE=$TARGET/package-test/bookworm.tar

die() {
    echo "test-package.sh: $*" >&2
    exit 1
}

# Within the namespaces: $1 is the folder of the Debian, $2 the folder of the packages.
inside() {
    local debian=$1 packages=$2 pid before after state
    mount -t proc proc "$debian/proc"
    export PATH=/usr/sbin:/usr/bin:/sbin:/bin DEBIAN_FRONTEND=noninteractive
    in_debian() { chroot "$debian" "$@"; }
    # What the package manager notes for itself is not the package's.
    files() { (cd "$debian" && find . -path ./proc -prune -o -path ./var/lib/dpkg -prune -o -path ./var/log -prune -o -print | sort); }
    in_debian mkdir /packages
    cp "$packages"/*.deb "$debian/packages/"
    before=$(files)

    in_debian dpkg -i /packages/old.deb
    in_debian dpkg -V extentd
    [[ $(in_debian extentd --version) == "extentd $(version)" ]] || die "extentd --version: $(in_debian extentd --version)"
    in_debian extentctl --version
    in_debian extentd-load --version
    in_debian extentd-nbd --version
    local unit
    for unit in extentd@ extentd-nbd@; do
        [[ -s $debian/lib/systemd/system/$unit.service && -s $debian/lib/systemd/system/$unit.socket ]] || die "there is no unit $unit"
    done
    [[ $(stat -c %a "$debian/var/lib/extentd") == 711 && -d $debian/etc/extentd ]] || die "the folders are not there"
    local binary
    binary=$(sed -n 's/.*"binary": "\(.*\)".*/\1/p' "$debian/usr/share/qemu/vhost-user/50-extentd.json")
    in_debian "$binary" --print-capabilities | grep -q '"type": "block"' || die "the description names no back-end: $binary"

    for binary in extentd extentctl extentd-load extentd-nbd; do
        crates_of "$debian/usr/bin/$binary"
    done
    python3 -c 'import json, sys; json.load(open(sys.argv[1]))' "$debian/usr/share/doc/extentd/extentd.cdx.json"

    local image=/var/lib/extentd/vm1.img socket=/run/extentd/vm1.sock control=/run/extentd/vm1.control
    truncate -s 16M "$debian$image"
    mkdir -p "$debian/run/extentd"
    # Not by the function, whose shell would be the process that is waited for.
    chroot "$debian" extentd --socket-path "$socket" --control-path "$control" --blk-file "$image" --num-queues 4 &
    pid=$!
    wait_for "extentd does not listen" test -S "$debian$socket"
    mkfifo "$packages/said"
    "$TARGET/debug/examples/outlive" "$debian$socket" "$debian$image" 1 >"$packages/said" &
    local front_end=$! line
    exec 3<"$packages/said"
    # The front-end says that next, in time.
    said() {
        line=nothing
        read -t 60 -r line <&3 || true
        [[ $line == "$1"* ]] || die "the front-end says '$line' instead of '$1'"
    }
    said load
    in_debian extentctl --control-path "$control" info | head -n 1

    in_debian dpkg -i /packages/new.deb
    # What the reload of the unit does where there is systemd.
    kill -USR2 "$pid"
    said again
    echo "upgraded under load, served $line"
    cmp -s "/proc/$pid/exe" "$debian/usr/bin/extentd" || die "it runs another binary"
    [[ $(stat -Lc %i "/proc/$pid/exe") == $(stat -c %i "$debian/usr/bin/extentd") ]] || die "it runs the old binary"
    said "all right"
    wait "$front_end"
    echo "$line"
    kill -TERM "$pid"
    wait "$pid" || die "extentd ended with status $?"

    in_debian dpkg --purge extentd
    [[ -s $debian$image ]] || die "the purge took the image"
    # shellcheck disable=SC2016 # for dpkg-query
    state=$(in_debian dpkg-query -W -f '${Status}' extentd 2>/dev/null || true)
    [[ -z $state || $state == *not-installed ]] || die "still $state"
    # Without an image nothing stays.
    rm "$debian$image"
    in_debian dpkg -i /packages/new.deb
    in_debian dpkg --purge extentd
    after=$(files)
    [[ $before == "$after" ]] || die "left after the purge: $(comm -3 <(echo "$before") <(echo "$after"))"
    echo "installed, upgraded under load, purged: nothing lost and nothing left"
}

# A program has the list of its crates as scanners read it, and that names what it is and what it cannot be without.
crates_of() {
    objcopy --dump-section .dep-v0=/dev/stdout "$1" /dev/null | python3 -c '
import json, os, sys, zlib
packages = json.loads(zlib.decompress(sys.stdin.buffer.read()))["packages"]
names = {package["name"] for package in packages if package.get("kind") != "build"}
roots = [package["name"] + " " + package["version"] for package in packages if package.get("root")]
own = {"extentd-load": "extentd-front-end"}.get(os.path.basename(sys.argv[1]), "extentd")
wanted = {"clap", "libc"} | ({"vhost-backend", "extentd-mapping", "io-uring"} if own == "extentd" else set())
if roots != [own + " " + sys.argv[2]] or not wanted <= names:
    sys.exit(f"{sys.argv[1]} lists {roots} and lacks {wanted - names}")
print(f"{sys.argv[1]} lists {len(packages)} crates")
' "$1" "$(version)" || die "the list of crates in $1"
}
version() { sed -n '0,/^version = /s/^version = "\(.*\)"/\1/p' Cargo.toml; }
wait_for() {
    local what=$1 turns
    shift
    for ((turns = 0; turns < 500; turns++)); do
        "$@" && return 0
        sleep 0.02
    done
    die "$what"
}

case ${1:-} in
--inside)
    inside "$2" "$3"
    exit
    ;;
"") ;;
*)
    sed -n '2,5s/^# //p' "${BASH_SOURCE[0]}"
    exit 2
    ;;
esac

[[ $(id -u) == 0 ]] || die "needs root"
for tool in mmdebstrap lintian dpkg-shlibdeps unshare; do
    command -v "$tool" >/dev/null || die "$tool is missing: qemu-scripts/setup.sh --tests installs it"
done
export PATH=$TARGET/tools/bin:$PATH
command -v cargo-deb >/dev/null || cargo install --quiet cargo-deb --version 3.8.0 --locked --root "$TARGET/tools"

work=$(mktemp -d "${EXTENTD_TEST_DIR:-/var/tmp}/extentd-package.XXXXXX")
trap 'rm -rf --one-file-system "$work"' EXIT
mkdir -p "$work/packages" "$work/debian" "$work/built"
# As the tests run it: without optimization across crates, which takes minutes.
old=$(packaging/build-deb.sh --profile dev --output "$work/built")
lintian --fail-on error,warning "$old"
mv "$old" "$work/packages/old.deb"
mv "$(packaging/build-deb.sh --profile dev --version "$(version)-2" --output "$work/built")" "$work/packages/new.deb"
cargo build --locked -p rig --example outlive

if [[ ! -s $BASE ]]; then
    mkdir -p "$(dirname "$BASE")"
    mmdebstrap --quiet --format=tar --variant=essential bookworm "$BASE.part"
    mv "$BASE.part" "$BASE"
fi
tar -x -C "$work/debian" -f "$BASE"
# In the background, so that a signal ends this script at once, and all within with it.
trap 'exit 143' TERM INT
setpriv --pdeathsig KILL unshare --mount --pid --fork --kill-child --mount-proc --propagation private \
    bash "${BASH_SOURCE[0]}" --inside "$work/debian" "$work/packages" &
wait $!
