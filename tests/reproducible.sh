#!/usr/bin/env bash
# Builds the release of HEAD twice, in folders of different names and with different homes of cargo, and compares the
# programs byte by byte. Not a part of run.sh: two builds with link-time optimization take longer than all else there.
set -euo pipefail
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
work=$(mktemp -d "${EXTENTD_TEST_DIR:-/var/tmp}/extentd-reproducible.XXXXXX")
trap 'rm -rf --one-file-system "$work"' EXIT
commit=$(git -C "$ROOT" rev-parse HEAD)
crates=${CARGO_HOME:-$HOME/.cargo}

# Prints the checksums of what is built from a tree that lies there.
build() {
    local tree=$1/source home=$1/cargo
    mkdir -p "$tree" "$home"
    git -C "$ROOT" archive "$commit" | tar -x -C "$tree"
    # The registry as it is, under another name.
    ln -s "$crates/registry" "$home/registry"
    [[ ! -e $crates/config.toml ]] || ln -s "$crates/config.toml" "$home/config.toml"
    (
        cd "$tree"
        export CARGO_HOME=$home CARGO_INCREMENTAL=0 SOURCE_DATE_EPOCH=0
        export RUSTFLAGS="--remap-path-prefix=$tree=/extentd --remap-path-prefix=$home=/cargo --remap-path-prefix=$crates=/cargo"
        cargo build --release --locked --bins --target-dir "$1/target" >&2
        cd "$1/target/release" && sha256sum extentd extentctl
    )
}

one=$(build "$work/a")
other=$(build "$work/another-folder")
echo "$one"
if [[ $one != "$other" ]]; then
    echo "reproducible.sh: another folder gives other programs:" >&2
    echo "$other" >&2
    exit 1
fi
