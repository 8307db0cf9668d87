#!/usr/bin/env bash
# Packs a small guest: busybox, kernel modules with what they depend on, tools with their libraries.
set -euo pipefail
# shellcheck source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

usage() {
    say "usage: make-initramfs.sh --out FILE [options]
  --out FILE         where to write the initramfs (a gzipped cpio archive)
  --job FILE         a shell script the guest runs before it powers off
  --tool NAME        a program of this machine to take along with its libraries (repeatable)
  --module NAME      a kernel module besides virtio_pci and virtio_blk (repeatable)
  --file SOURCE:DEST any file, DEST an absolute path in the guest (repeatable)
  --host             for the kernel of a machine that runs extentd, not for that of a guest
  --old              for the kernel of old-kernel.sh
Without a job the guest opens a shell on its console, or, with extentd.agent=ttyS1 on its kernel
command line, runs the commands it reads from that port."
}

out='' job='' modules=(virtio_pci virtio_blk) tools=() files=() kernel=kernel
while (($# > 0)); do
    case $1 in
    -h | --help) usage && exit 0 ;;
    --host)
        kernel=$(host_kernel_folder) || die "no kernel for a host; run setup.sh --tests first"
        shift
        ;;
    --old)
        kernel=old-kernel
        shift
        ;;
    --out | --job | --tool | --module | --file)
        (($# > 1)) || die "$1 needs a value (see --help)"
        case $1 in
        --out) out=$2 ;;
        --job) job=$2 ;;
        --tool) tools+=("$2") ;;
        --module) modules+=("$2") ;;
        --file) files+=("$2") ;;
        esac
        shift 2
        ;;
    *) die "unknown argument '$1' (see --help)" ;;
    esac
done
[[ -n $out ]] || die "--out FILE is missing (see --help)"
busybox=$(static_busybox) || die "no static busybox; run setup.sh first"
release=$(kernel_release "$kernel") || die "no guest kernel; run setup.sh first"

tree=$(mktemp -d "${TMPDIR:-/tmp}/extentd-initramfs.XXXXXX")
trap 'rm -rf "$tree"' EXIT
mkdir -p "$tree"/{bin,tools,modules,proc,sys,dev,tmp,mnt}
cp "$busybox" "$tree/bin/busybox"
install -m 755 "$SCRIPTS/guest-init" "$tree/init"
install -m 755 "$SCRIPTS/guest-agent" "$tree/agent"
[[ -z $job ]] || install -m 755 "$job" "$tree/job"

# In the order modprobe would load them; several modules share dependencies. crc32c-intel only speeds
# things up, and an emulated CPU may lack what it needs.
for module in "${modules[@]}"; do
    modprobe -d "$CACHE/$kernel" -S "$release" --show-depends "$module" || die "kernel $release has no module $module"
done | awk '$1 == "insmod" && !/crc32c-intel/ && !seen[$2]++ { print $2 }' >"$tree/modules/paths"
while read -r path; do
    module=$(basename "$path" .xz)
    if [[ $path == *.xz ]]; then xz -dc "$path" >"$tree/modules/$module"; else cp "$path" "$tree/modules/"; fi
    echo "$module"
done <"$tree/modules/paths" >"$tree/modules/order"
rm "$tree/modules/paths"

for tool in ${tools[@]+"${tools[@]}"}; do
    path=$(command -v "$tool") || die "there is no program '$tool' on this machine"
    cp -L "$path" "$tree/tools/$(basename "$tool")"
    { ldd "$path" 2>/dev/null || true; } | grep -o '/[^ ]*' | while read -r library; do
        [[ -e $tree$library ]] || install -D "$library" "$tree$library"
    done
done
for file in ${files[@]+"${files[@]}"}; do
    install -D "${file%%:*}" "$tree${file#*:}"
done

(cd "$tree" && find . | cpio --quiet -o -H newc -R 0:0) | gzip -1 >"$out.part"
mv "$out.part" "$out"
