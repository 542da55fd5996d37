#!/usr/bin/env bash
# Train the two detectors that ship with the package on a manifest with a split column (docs/model-card.md names the data).
#   weights/make_detectors.sh MANIFEST
set -euo pipefail
folder=$(cd "$(dirname "$0")" && pwd)
corit train "$1" --out "$folder/detector" --overwrite
corit train "$1" --out "$folder/detector-fast" --crop resize --overwrite
