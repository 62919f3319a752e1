#!/usr/bin/env bash
# Trains the bundled cascade from scratch: procedural shards, tokenizer, four
# trainings. Finished steps are skipped and a stopped training is resumed, so
# the same command continues.
#
#   launch/make_tiny.sh [WORK]      (default: tiny_work)
#
# It takes about six hours on two CPU cores. The result is WORK/tiny; copy it
# to i2vgen_jax/assets/tiny to bundle it.
set -euo pipefail
cd "$(dirname "$0")/.."

work=${1:-tiny_work}
cascade=$work/tiny
shards=$work/procedural/train

# With only 10,000 clips the base stage memorises which way each object turns
# in place of reading it from the caption.
i2vgen data build procedural --output "$shards" --num-clips 24000 \
  --split train --seed 0
[ -d "$cascade/tokenizer" ] || i2vgen data vocabulary --output "$cascade/tokenizer"

# train NAME NETWORK...: trains a config and copies the networks it exports.
train() {
  local name=$1
  shift
  [ -d "$cascade/$1" ] && return
  i2vgen train --config="configs/i2vgen_xl.py:$name" --workdir="$work/$name" \
    --config.frozen="$cascade" \
    --config.data.video_dirs="('$shards/text_video/1.0.0',)"
  for network in "$@"; do
    cp -r "$work/$name/export/$network" "$cascade/.$network"
    mv "$cascade/.$network" "$cascade/$network"
  done
}

train tiny_vae vae
train tiny_clip text_encoder image_encoder
train tiny base
train tiny_refine refine

i2vgen evaluate --weights "$cascade" --output "$work/evaluation"
