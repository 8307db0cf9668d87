#!/usr/bin/env bash
# Installs what the guests and the tests need on Debian 12 or later, as root or through sudo:
# QEMU 10 (from backports where the release has an older one), file-system tools, and, unpacked
# into a cache and never installed, a Debian cloud kernel and a static busybox for the guests.
# Runs no package manager at all when everything is there.
set -euo pipefail
# shellcheck source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

for_tests=0
for_bench=0
case ${1:-} in
"") ;;
--tests) for_tests=1 ;;
--bench) for_bench=1 ;;
-h | --help)
    say "usage: setup.sh [--tests | --bench | --kernel | --host-kernel | --systemd | --lvm]
Installs QEMU 10, file-system tools and a guest kernel (kept in \$EXTENTD_CACHE, now $CACHE).
  --tests    also what only the tests need
  --bench    only what bench.sh needs: qemu-storage-daemon 10, fio and file-system tools
  --kernel   install nothing, print the guest kernel's path
  --host-kernel
             the same for the kernel of a machine that runs extentd in the tests
  --systemd  the same for the root folder of a system with systemd
  --lvm      the same for that of one with LVM"
    exit 0
    ;;
--kernel)
    guest_kernel || die "no guest kernel in $CACHE; run setup.sh first"
    exit 0
    ;;
--host-kernel)
    folder=$(host_kernel_folder) || die "no kernel 6.5 or later in $CACHE; run setup.sh --tests first"
    kernel_image "$folder"
    exit 0
    ;;
--systemd)
    [[ -x $CACHE/systemd/usr/lib/systemd/systemd ]] || die "no systemd in $CACHE; run setup.sh --tests first"
    echo "$CACHE/systemd"
    exit 0
    ;;
--lvm)
    [[ -x $CACHE/lvm/usr/sbin/lvm ]] || die "no LVM in $CACHE; run setup.sh --tests first"
    echo "$CACHE/lvm"
    exit 0
    ;;
*) die "unknown argument '$1' (see --help)" ;;
esac

[[ $(uname -m) == x86_64 ]] || die "only x86_64 machines are supported, this one is $(uname -m)"

# command:package pairs; a package is asked for only when its command is missing.
needs=(
    cc:gcc mkfs.ext4:e2fsprogs debugfs:e2fsprogs cpio:cpio gzip:gzip modprobe:kmod
    sfdisk:fdisk ldd:libc-bin blkdiscard:util-linux
)
if ((for_tests)); then
    needs+=(
        mkfs.xfs:xfsprogs mkfs.btrfs:btrfs-progs losetup:mount mount:mount setpriv:util-linux
        c++:g++ strip:binutils dmsetup:dmsetup cryptsetup:cryptsetup-bin xz:xz-utils strace:strace llvm-symbolizer:llvm valgrind:valgrind
        promtool:prometheus nbdinfo:libnbd-bin shellcheck:shellcheck mandoc:mandoc mcopy:mtools mkfs.vfat:dosfstools lintian:lintian mmdebstrap:mmdebstrap
        dpkg-shlibdeps:dpkg-dev python3:python3 unshare:util-linux virt-xml-validate:libvirt-clients xmllint:libxml2-utils
    )
fi
if ((for_bench)); then
    needs=(cc:gcc mkfs.ext4:e2fsprogs mkfs.xfs:xfsprogs losetup:mount mount:mount taskset:util-linux fio:fio)
fi
missing=()
for pair in "${needs[@]}"; do
    have "${pair%%:*}" || missing+=("${pair##*:}")
done
[[ -e /usr/include/stdio.h ]] || missing+=(libc6-dev)
if ((for_tests)) && [[ ! -e /usr/share/OVMF/OVMF_CODE_4M.fd ]]; then missing+=(ovmf); fi
want_qemu=0
if (($(qemu_major) < 10)) || ! have qemu-img || ! have qemu-storage-daemon; then want_qemu=1; fi
want_busybox=0
static_busybox >/dev/null || want_busybox=1
want_kernel=0
guest_kernel >/dev/null || want_kernel=1
want_host_kernel=0
if ((for_tests)) && ! host_kernel_folder >/dev/null; then want_host_kernel=1; fi
if ((for_bench)); then
    want_busybox=0
    want_kernel=0
fi
want_systemd=0
if ((for_tests)) && [[ ! -x $CACHE/systemd/usr/lib/systemd/systemd ]]; then want_systemd=1; fi
want_lvm=0
if ((for_tests)) && [[ ! -x $CACHE/lvm/usr/sbin/lvm ]]; then want_lvm=1; fi
if ((${#missing[@]} == 0 && want_qemu == 0 && want_busybox == 0 && want_kernel == 0 && want_host_kernel == 0 && want_systemd == 0 && want_lvm == 0)); then
    exit 0
fi

have apt-get || die "this system has no apt-get; install by hand: QEMU 10 (qemu-system-x86_64, qemu-img, qemu-storage-daemon) ${missing[*]:-}"
if [[ $(id -u) == 0 ]]; then
    as_root() { "$@"; }
elif have sudo; then
    as_root() { sudo "$@"; }
else
    die "needs root to install packages: run it as root or install sudo"
fi

log=$(mktemp "${TMPDIR:-/tmp}/extentd-setup.XXXXXX")
trap 'rm -f "$log"' EXIT
apt_get() {
    as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=300 -o Acquire::Retries=3 "$@" </dev/null >"$log" 2>&1
}
apt_or_die() {
    local what=$1
    shift
    apt_get "$@" || die "cannot get $what: $(grep -E '^(E|Err)' "$log" | tail -n 1 | tr -s ' ')"
}
install() { apt_or_die "$*" install -y --no-install-recommends "$@"; }

# The version apt would install, without its epoch; empty when it knows none.
candidate() { apt-cache policy "$@" | sed -n 's/^  Candidate: \([0-9]*:\)\{0,1\}\([0-9].*\)/\2/p'; }

say "setup: refreshing the package lists"
apt_get update || true
[[ -n $(candidate qemu-system-x86) ]] ||
    die "apt knows no package qemu-system-x86; check the network and /etc/apt/sources.list.d: $(grep -E '^(E|W|Err)' "$log" | head -n 1)"

if ((${#missing[@]} > 0)); then
    mapfile -t missing < <(printf '%s\n' "${missing[@]}" | sort -u)
    say "setup: installing ${missing[*]}"
    install "${missing[@]}"
fi

# Adds the backports suite beside the release's own entry, from the same archive and with the same key.
add_backports() {
    local archive key list=/etc/apt/sources.list.d/extentd-backports.sources
    debian_archive
    key=/usr/share/keyrings/debian-archive-keyring.gpg
    [[ -r $key ]] || die "$key is missing (package debian-archive-keyring)"
    printf 'Types: deb\nURIs: %s\nSuites: %s-backports\nComponents: main\nSigned-By: %s\n' \
        "$archive" "$codename" "$key" | as_root tee "$list" >/dev/null
    say "setup: added $codename-backports in $list"
    apt_or_die "the package list of $codename-backports" update
}

# Has apt know the backports of this release, and sets `suite`.
need_backports() {
    # shellcheck disable=SC1091
    suite=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")-backports
    apt-cache policy | grep -q "n=$suite" || add_backports
}

if ((want_qemu)); then
    release=()
    if dpkg --compare-versions "$(candidate qemu-system-x86)" lt 10; then
        need_backports
        release=(-t "$suite")
    fi
    say "setup: installing QEMU 10 or later"
    install "${release[@]}" qemu-system-x86 qemu-utils
    (($(qemu_major) >= 10)) || die "QEMU 10 or later is needed, apt gave version $(qemu_major)"
fi

if ((want_busybox)); then
    say "setup: fetching a static busybox for the guests"
    fetch busybox-static busybox || exit 1
    static_busybox >/dev/null || die "the package busybox-static holds no static busybox"
fi
# Fetches the newest cloud kernel into the folder $1 of the cache, from the suite $2 if there is one.
fetch_kernel() {
    local package
    package=$(kernel_package "${2:-}")
    [[ -n $package ]] || die "apt knows no linux-image-cloud-amd64${2:+ in $2}, so there is no kernel for the guests"
    say "setup: fetching $package for the guests"
    fetch "$package" "$1" || exit 1
    kernel_image "$1" >/dev/null || die "$package holds no kernel image"
    depmod -b "$CACHE/$1" "$(kernel_release "$1")"
}
if ((want_kernel)); then fetch_kernel kernel ""; fi
if ((want_host_kernel)) && ! host_kernel_folder >/dev/null; then
    need_backports
    fetch_kernel host-kernel "$suite"
    host_kernel_folder >/dev/null || die "$suite has no kernel 6.5 or later"
fi
# Unpacks packages into the folder $1 of the cache with all that they depend on, as if on a system where nothing is
# installed. The folders that Debian has merged are links before anything comes into them.
fetch_tree() {
    local name=$1 work folder archive
    shift
    mkdir -p "$CACHE"
    work=$(mktemp -d "$CACHE/fetch.XXXXXX")
    mkdir -p "$work/archives/partial"
    : >"$work/status"
    for folder in bin sbin lib lib64; do
        mkdir -p "$work/root/usr/$folder"
        ln -s "usr/$folder" "$work/root/$folder"
    done
    if ! apt-get -qq -y -d --no-install-recommends -o APT::Sandbox::User=root -o Acquire::Retries=3 -o Debug::NoLocking=1 \
        -o Dir::State::status="$work/status" -o Dir::Cache::Archives="$work/archives/" \
        install "$@" </dev/null >"$log" 2>&1; then
        rm -rf "$work"
        die "cannot download $*: $(grep -E '^(E|Err)' "$log" | tail -n 1)"
    fi
    for archive in "$work"/archives/*.deb; do
        dpkg-deb --fsys-tarfile "$archive" | tar -x --keep-directory-symlink -C "$work/root"
    done
    rm -rf "$work/root"/usr/share/{doc,man,locale,perl5,bash-completion,zsh}
    rm -rf "${CACHE:?}/$name"
    mv "$work/root" "$CACHE/$name"
    rm -rf "$work"
}
if ((want_systemd)); then
    say "setup: fetching systemd for a machine of the tests"
    fetch_tree systemd systemd mount
fi
if ((want_lvm)); then
    say "setup: fetching LVM for a machine of the tests"
    fetch_tree lvm lvm2
fi
say "setup: done"
