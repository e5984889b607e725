#!/usr/bin/env bash
# Builds the binary and packs it with data and configuration for a machine with a GPU: one folder of at most 60 MB.
#
#   tools/gpu/pack.sh [DATA]        DATA: a folder with items.* and interactions.*; without it only the self-test can run
#
# Makes target/gpu/ with sidrec.xz, run.sh and data/. Copy it over and start run.sh there.
set -euo pipefail
cd "$(dirname "$0")/../.."
out=target/gpu
rm -rf "$out"
mkdir -p "$out"
cargo build --release --locked -p tools
cp target/release/sidrec "$out/sidrec"
strip "$out/sidrec"
xz -T0 -6 "$out/sidrec"
cp tools/gpu/run.sh "$out/"
git rev-parse HEAD > "$out/commit" 2>/dev/null || echo unknown > "$out/commit"
if [ $# -gt 0 ]; then
    mkdir "$out/data"
    cp "$1"/items.* "$1"/interactions.* "$out/data/"
fi
bytes=$(du -sb "$out" | cut -f1)
echo "$out: $((bytes / 1000000)) MB"
[ "$bytes" -le 60000000 ] || { echo "more than 60 MB: leave the data out" >&2; exit 1; }
