# shellcheck shell=bash
# Shared by the scripts in this folder; sourced, never run. Written for bash.

export LC_ALL=C
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin
SCRIPTS=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
ROOT=$(dirname "$SCRIPTS")
# Fetched packages and the kernel live here; removing it only costs a download.
CACHE=${EXTENTD_CACHE:-${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/extentd}

say() { printf '%s\n' "$*"; }
die() {
    printf '%s: %s\n' "$(basename "$0")" "$*" >&2
    exit 1
}
have() { command -v "$1" >/dev/null 2>&1; }

# The major version of the installed QEMU, or 0.
qemu_major() {
    local line
    line=$(qemu-system-x86_64 --version 2>/dev/null | head -n 1) || true
    [[ $line =~ version\ ([0-9]+) ]] && echo "${BASH_REMATCH[1]}" || echo 0
}

# A statically linked busybox: the system's own, or the one setup.sh unpacked.
static_busybox() {
    local candidate
    for candidate in "$(command -v busybox)" "$CACHE/busybox/bin/busybox" "$CACHE/busybox/usr/bin/busybox"; do
        if [[ -n $candidate && -x $candidate ]] && ! ldd "$candidate" >/dev/null 2>&1; then
            echo "$candidate"
            return 0
        fi
    done
    return 1
}

# The kernel image unpacked in the folder $1 of the cache, and its release; both fail where there is none.
kernel_image() {
    local image
    image=$(find "$CACHE/$1/boot" -name 'vmlinuz-*' 2>/dev/null | sort | tail -n 1)
    [[ -n $image ]] && echo "$image"
}
kernel_release() {
    local image
    image=$(kernel_image "$1") && basename "$image" | sed 's/^vmlinuz-//'
}
guest_kernel() { kernel_image kernel; }
guest_release() { kernel_release kernel; }
# The folder of a kernel on which all of extentd works; it asks for cachestat(2), so for 6.5.
host_kernel_folder() {
    local folder release
    for folder in kernel host-kernel; do
        release=$(kernel_release "$folder") || continue
        if [[ $(printf '6.5\n%s\n' "$release" | sort -V | head -n 1) == 6.5 ]]; then
            echo "$folder"
            return 0
        fi
    done
    return 1
}

# Unpacks the package $1 into $CACHE/$2 without installing it, all or nothing; the rest is for apt-get.
fetch() {
    local package=$1 dest=$CACHE/$2 work
    shift 2
    mkdir -p "$CACHE"
    work=$(mktemp -d "$CACHE/fetch.XXXXXX")
    if ! (cd "$work" && apt-get -qq -o APT::Sandbox::User=root -o Acquire::Retries=3 "$@" download "$package" </dev/null) >"$work/log" 2>&1; then
        say "cannot download $package: $(grep -E '^(E|Err)' "$work/log" | tail -n 1)" >&2
        rm -rf "$work"
        return 1
    fi
    mkdir "$work/root"
    dpkg -x "$work"/*.deb "$work/root"
    rm -rf "$dest"
    mv "$work/root" "$dest"
    rm -rf "$work"
}
# The package of the newest cloud kernel, from the suite $1 if it is not empty; the rest is for apt-cache.
kernel_package() {
    local suite=$1
    shift
    apt-cache "$@" depends --important "linux-image-cloud-amd64${suite:+/$suite}" | sed -n 's/^ *Depends: \(linux-image-.*\)/\1/p' | head -n 1
}

# Sets codename to this release of Debian, and archive to where apt gets it from.
debian_archive() {
    # shellcheck disable=SC1091
    codename=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
    [[ -n $codename ]] || die "/etc/os-release names no VERSION_CODENAME, so the archive of this release is not known"
    # shellcheck disable=SC2016
    archive=$(apt-get indextargets --format '$(CODENAME)|$(COMPONENT)|$(REPO_URI)' 'Created-By: Packages' |
        awk -F'|' -v c="$codename" '$1 == c && $2 == "main" { print $3; exit }')
    [[ -n $archive ]] || die "apt has no main archive of $codename to take other releases from"
}

# Gets the package lists of another release of Debian, $1, into a new folder `apt`, which the caller removes; `of_release` is
# what has apt know that release alone. This system's lists stay as they are.
other_release() {
    local suite=$1 archive codename key=/usr/share/keyrings/debian-archive-keyring.gpg
    have apt-get || die "this system has no apt-get"
    [[ -r $key ]] || die "$key is missing (package debian-archive-keyring)"
    debian_archive
    mkdir -p "$CACHE"
    apt=$(mktemp -d "$CACHE/apt.XXXXXX")
    mkdir -p "$apt/lists/partial" "$apt/cache/archives/partial"
    echo "deb [signed-by=$key] $archive $suite main" >"$apt/sources"
    of_release=(
        -o "Dir::Etc::SourceList=$apt/sources" -o Dir::Etc::SourceParts=/dev/null -o "Dir::State::Lists=$apt/lists"
        -o "Dir::Cache=$apt/cache" -o APT::Sandbox::User=root
    )
    apt-get -qq "${of_release[@]}" -o Acquire::Retries=3 update </dev/null >"$apt/log" 2>&1 ||
        die "cannot get the lists of $suite: $(grep -E '^(E|Err)' "$apt/log" | tail -n 1)"
}

# Waits until somebody listens on the unix socket $1 and the process $2 lives.
# A connect() would count as a front-end, so the kernel's table is read instead.
wait_socket() {
    local turns
    for ((turns = 0; turns < 500; turns++)); do
        awk -v path="$1" '$8 == path && $4 == "00010000" { found = 1 } END { exit !found }' /proc/net/unix && return 0
        kill -0 "$2" 2>/dev/null || return 1
        sleep 0.02
    done
    return 1
}

# Builds extentd unless $EXTENTD names a binary; sets EXTENTD to its path.
build_extentd() {
    if [[ -z ${EXTENTD:-} ]]; then
        have cargo || die "cargo is missing: install Rust first"
        cargo build --quiet --release --manifest-path "$ROOT/Cargo.toml" --bin extentd || die "the build failed"
        EXTENTD=${CARGO_TARGET_DIR:-$ROOT/target}/release/extentd
    fi
    [[ -x $EXTENTD ]] || die "$EXTENTD is not a program"
}

# Starts extentd on the socket $1 with the further arguments; sets EXTENTD_PID once it listens.
start_extentd() {
    local socket=$1
    shift
    "$EXTENTD" --socket-path "$socket" "$@" &
    EXTENTD_PID=$!
    wait_socket "$socket" "$EXTENTD_PID" || die "extentd did not start"
}

# Asks extentd to end and returns its exit status.
stop_extentd() {
    local pid=${EXTENTD_PID:-} status=0
    [[ -n $pid ]] || return 0
    EXTENTD_PID=''
    kill -TERM "$pid" 2>/dev/null || true
    wait "$pid" || status=$?
    return "$status"
}

# QEMU's arguments for a guest whose memory a vhost-user back-end may share: accelerator $1,
# memory in MiB $2, virtual CPUs $3. One a line, to be read with mapfile.
guest_arguments() {
    printf '%s\n' -machine "q35,memory-backend=mem,accel=$1" -m "$2M" -smp "$3" \
        -object "memory-backend-memfd,id=mem,size=$2M,share=on" \
        -nodefaults -no-user-config -display none -no-reboot
    [[ $1 != kvm ]] || printf '%s\n' -cpu host
}
# The same for the disk behind the socket $1 with $2 queues.
disk_arguments() {
    printf '%s\n' -chardev "socket,id=disk,path=$1,reconnect-ms=200" \
        -device "vhost-user-blk-pci,id=vd0,chardev=disk,num-queues=$2,bootindex=1"
}

# Opening it is not enough to know that KVM runs guests well, so it is used on request only.
require_kvm() {
    [[ -r /dev/kvm && -w /dev/kvm ]] || die "--kvm: /dev/kvm cannot be opened by $(id -un)"
}
