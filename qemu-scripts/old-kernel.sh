#!/usr/bin/env bash
# Fetches the cloud kernel of an older Debian for guests, unless it is in the cache, and prints its path. Changes nothing
# of this system: the lists of that release are kept in the cache as well.
set -euo pipefail
# shellcheck source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

case ${1:-} in
"") ;;
-h | --help)
    say "usage: old-kernel.sh
Fetches the kernel of Debian 11 (5.10) into \$EXTENTD_CACHE, now $CACHE, and prints its path."
    exit 0
    ;;
*) die "unknown argument '$1' (see --help)" ;;
esac
kernel_image old-kernel && exit 0

apt=''
trap 'rm -rf "$apt"' EXIT
other_release bullseye
package=$(kernel_package "" "${of_release[@]}")
[[ -n $package ]] || die "bullseye has no linux-image-cloud-amd64"
fetch "$package" old-kernel "${of_release[@]}" || exit 1
depmod -b "$CACHE/old-kernel" "$(kernel_release old-kernel)"
kernel_image old-kernel
