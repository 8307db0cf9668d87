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

have apt-get || die "this system has no apt-get"
suite=bullseye key=/usr/share/keyrings/debian-archive-keyring.gpg
[[ -r $key ]] || die "$key is missing (package debian-archive-keyring)"
debian_archive
mkdir -p "$CACHE"
apt=$(mktemp -d "$CACHE/apt.XXXXXX")
trap 'rm -rf "$apt"' EXIT
mkdir -p "$apt/lists/partial" "$apt/cache/archives/partial"
echo "deb [signed-by=$key] $archive $suite main" >"$apt/sources"
options=(
    -o "Dir::Etc::SourceList=$apt/sources" -o Dir::Etc::SourceParts=/dev/null -o "Dir::State::Lists=$apt/lists"
    -o "Dir::Cache=$apt/cache" -o APT::Sandbox::User=root
)
apt-get -qq "${options[@]}" -o Acquire::Retries=3 update </dev/null >"$apt/log" 2>&1 ||
    die "cannot get the lists of $suite: $(grep -E '^(E|Err)' "$apt/log" | tail -n 1)"
package=$(kernel_package "" "${options[@]}")
[[ -n $package ]] || die "$suite has no linux-image-cloud-amd64"
fetch "$package" old-kernel "${options[@]}" || exit 1
depmod -b "$CACHE/old-kernel" "$(kernel_release old-kernel)"
kernel_image old-kernel
