#!/usr/bin/env bash
# Train the detector that ships with the package on a manifest with a split column (docs/model-card.md names the data).
# AUTOENCODER is a folder with the weights of a TAESD autoencoder, for regions that the heatmap learns from.
#   weights/make_detector.sh MANIFEST AUTOENCODER [further options of corit train, such as --cache FILE]
set -euo pipefail
folder=$(cd "$(dirname "$0")" && pwd)
[[ -e ${1-} && -d ${2-} ]] || { echo "usage: $0 MANIFEST AUTOENCODER [options of corit train]" >&2; exit 2; }
manifest=$1 autoencoder=$2
shift 2
degraded=(--degrade jpeg:40-95 --degrade resize:0.35-1.5 --degrade blur:0.3-1.5 --degrade noise:0.5-6 --degrade webp:50-95)
local=(--local self_blend --local recompress@part --local resample@part --local "reconstruct@part:$autoencoder")
corit train "$manifest" --out "$folder/detector" --overwrite --crop resize --no-cgp "${degraded[@]}" --copies 4 "${local[@]}" "$@"
