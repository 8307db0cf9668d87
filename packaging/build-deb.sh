#!/usr/bin/env bash
# Builds the Debian package of this tree by cargo deb: the programs that [package.metadata.deb] in Cargo.toml names, and
# what lies beside them. Prints the package's path.
set -euo pipefail
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$ROOT"

usage() {
    echo "usage: packaging/build-deb.sh [--profile NAME] [--version VERSION] [--output FOLDER]
  --profile NAME     build profile (release)
  --version VERSION  of the package (that of Cargo.toml, with -1)
  --output FOLDER    where it goes (target/debian)
The programs have the list of their crates in the section .dep-v0, where cargo audit bin and other scanners read it; the
package has it as CycloneDX too.
Needs cargo deb (cargo install cargo-deb --locked), dpkg-dev, binutils and python3 3.11."
}
die() {
    echo "build-deb.sh: $*" >&2
    exit 1
}

profile=release version='' output=${CARGO_TARGET_DIR:-$ROOT/target}/debian
while (($# > 0)); do
    case $1 in
    -h | --help) usage && exit 0 ;;
    --profile | --version | --output)
        (($# > 1)) || die "$1 needs a value (see --help)"
        case $1 in
        --profile) profile=$2 ;;
        --version) version=$2 ;;
        --output) output=$2 ;;
        esac
        shift
        ;;
    *) die "unknown argument '$1' (see --help)" ;;
    esac
    shift
done
command -v cargo-deb >/dev/null || die "cargo deb is missing: cargo install cargo-deb --locked"
command -v dpkg-shlibdeps >/dev/null || die "dpkg-shlibdeps is missing: install dpkg-dev"
command -v objcopy >/dev/null || die "objcopy is missing: install binutils"

# Each program of the package, whichever crate it is of.
mapfile -t programs < <(sed -n 's|^ *\["target/release/\([^"]*\)", "usr/bin/".*|\1|p' Cargo.toml)
((${#programs[@]} > 0)) || die "Cargo.toml names no programs for the package"
wanted=()
for program in "${programs[@]}"; do wanted+=(--bin "$program"); done
cargo build --locked --workspace --profile "$profile" "${wanted[@]}" >&2
# As a new file each: cargo's own has other names, and may be running.
built=${CARGO_TARGET_DIR:-$ROOT/target}/$([[ $profile == dev ]] && echo debug || echo "$profile")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
packaging/sbom.py "$work" "${programs[@]}"
for program in "${programs[@]}"; do
    objcopy --remove-section .dep-v0 --add-section ".dep-v0=$work/$program.dep-v0" "$built/$program" "$work/$program"
    mv -f "$work/$program" "$built/$program"
done
mv "$work/extentd.cdx.json" "$built/"
mkdir -p "$output"
cargo deb --no-build --locked --profile "$profile" --output "$output" ${version:+--deb-version "$version"} >&2
find "$output" -maxdepth 1 -name 'extentd_*.deb' -printf '%T@ %p\n' | sort -n | tail -n 1 | cut -d' ' -f2-
