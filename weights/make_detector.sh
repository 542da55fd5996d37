#!/usr/bin/env bash
# Train the detector that ships with the package on a manifest with a split column (docs/model-card.md names the data).
# AUTOENCODER is a folder with the weights of a TAESD autoencoder, for reconstructions.
#   weights/make_detector.sh MANIFEST AUTOENCODER [further options of corit train, such as --cache FILE]
set -euo pipefail
folder=$(cd "$(dirname "$0")" && pwd)
[[ -e ${1-} && -d ${2-} ]] || { echo "usage: $0 MANIFEST AUTOENCODER [options of corit train]" >&2; exit 2; }
manifest=$1 autoencoder=$2
shift 2
# What a copy is put through, in this order; what is commoner stands here twice.
degraded=()
for kind in crop:0.3-0.9 tonemap:1-4 grade:0.2-0.6 grey:1 portrait:0.5-2 paint:10-60 collage:2-3 rescan:0.5-1.5 \
    resize:0.35-1.5 resize:0.5-1 blur:0.3-1.5 noise:0.5-6 screenshot:0.6-1.25 webp:50-95 jpeg:40-95 jpeg:70-98; do
    degraded+=(--degrade "$kind")
done
# Swapped faces are imitated by faces blended with another view of themselves; only the reading of faces sees these.
# Reconstructions differ from their photographs in pixels alone; only the readings of native windows see these.
forged=(--forge face_blend --forge "0.3*reconstruct@native:$autoencoder")
local=(--local self_blend --local recompress@part --local resample@part --local "reconstruct@part:$autoencoder")
# The reading of native class tokens learns from one more window of each image.
# At most one real image in twenty is to be called fake: a point less is aimed at, since new sources vary.
corit train "$manifest" --out "$folder/detector" --overwrite --refit "${forged[@]}" "${degraded[@]}" --copy-weight 0.2 \
    --more-windows 1 --folds 12 --target-fpr 0.04 --precision fp32 "${local[@]}" "$@"
