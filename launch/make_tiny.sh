#!/usr/bin/env bash
# Trains a small cascade from scratch: photographs, procedural shards,
# tokenizer, four trainings. Finished steps are skipped and a stopped training
# is resumed, so the same command continues.
#
#   launch/make_tiny.sh [WORK [STEPS]]      (default: tiny_work)
#
# The result is WORK/tiny; copy it to i2vgen_jax/assets/tiny to bundle it. The
# photographs come from packages of Debian 12. STEPS is the number of steps of
# every training, on few clips, to try the script.
set -euo pipefail
cd "$(dirname "$0")/.."

work=${1:-tiny_work}
steps=${2:-}
cascade=$work/tiny
photographs=$work/photographs

if [ ! -d "$photographs" ]; then
  i2vgen data photographs "$photographs.part"
  mv "$photographs.part" "$photographs"
fi

# build WORLD CLIPS
build() {
  local clips=${steps:+64}
  i2vgen data build procedural --output "$work/shards/$1" \
    --num-clips "${clips:-$2}" --shows "$1" --photographs "$photographs" \
    --size 192x128 --split train
}
build camera 14000
build objects 12000
camera=$work/shards/camera/text_video/1.0.0
objects=$work/shards/objects/text_video/1.0.0
[ -d "$cascade/tokenizer" ] || i2vgen data vocabulary --output "$cascade/tokenizer"

# train NAME DIRS NETWORK...: trains a config and copies its networks.
train() {
  local name=$1 dirs=$2
  shift 2
  [ -d "$cascade/$1" ] && return
  i2vgen train --config="configs/i2vgen_xl.py:$name" --workdir="$work/$name" \
    --config.frozen="$cascade" --config.data.video_dirs="$dirs" \
    ${steps:+--config.train.num_steps="$steps" --config.train.warmup_steps=0}
  for network in "$@"; do
    cp -r "$work/$name/export/$network" "$cascade/.$network"
    mv "$cascade/.$network" "$cascade/$network"
  done
}

both="('$camera', '$objects')"
# Objects are learned more slowly.
base="(('$camera', 1), ('$objects', 2))"
train tiny_vae "$both" vae
# A single photograph says nothing about the motion of the camera.
train tiny_clip "('$objects',)" text_encoder image_encoder
train tiny "$base" base
train tiny_refine "$both" refine

i2vgen evaluate --weights "$cascade" --photographs "$photographs" \
  --output "$work/evaluation" ${steps:+--num-clips 2}
