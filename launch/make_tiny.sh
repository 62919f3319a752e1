#!/usr/bin/env bash
# Builds the bundled cascade from nothing: procedural shards, tokenizer, four
# trainings, one after the other. Each step that is done already is left out,
# and a training that was stopped goes on, so the same command continues.
#
#   launch/make_tiny.sh [WORK]      (default: tiny_work)
#
# About six hours on two CPU cores, by the rates of its parts. It ends up in
# WORK/tiny; copy it to i2vgen_jax/assets/tiny to bundle it.
set -euo pipefail
cd "$(dirname "$0")/.."

work=${1:-tiny_work}
cascade=$work/tiny
shards=$work/procedural/train

# So many that no clip is seen often: with 10,000 the base stage learns by
# heart which way each object turns, instead of reading it.
i2vgen data build procedural --output "$shards" --num-clips 24000 \
  --split train --seed 0
[ -d "$cascade/tokenizer" ] || i2vgen data vocabulary --output "$cascade/tokenizer"

# train ARG NETWORK...: one config, and the networks that it exports.
train() {
  local arg=$1
  shift
  [ -d "$cascade/$1" ] && return
  i2vgen train --config="configs/i2vgen_xl.py:$arg" --workdir="$work/$arg" \
    --config.frozen="$cascade" \
    --config.data.video_dirs="('$shards/text_video/1.0.0',)"
  for network in "$@"; do
    cp -r "$work/$arg/export/$network" "$cascade/.$network"
    mv "$cascade/.$network" "$cascade/$network"
  done
}

train tiny_vae vae
train tiny_clip text_encoder image_encoder
train tiny base
train tiny_refine refine

i2vgen evaluate --weights "$cascade" --output "$work/evaluation"
