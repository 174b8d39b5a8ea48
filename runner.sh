#!/usr/bin/env bash
# The experiments. Every line below can be pasted on its own; values can be set from the environment.
#
#   bash runner.sh            the demo, end to end, on 2 CPU cores and without any download
#   bash runner.sh judge      how well the demo's generated faces show what their prompts say
#   bash runner.sh table3     ERM, full fine-tuning and AIM-Fair on CelebA and UTKFace (needs a GPU)
#
# Stopped at any moment, the same command goes on; what is finished is not run again.
set -euo pipefail
cd "$(dirname "$0")"

RESULTS=${RESULTS:-results}
DATA=${DATA:-data}                     # everything unpacked, decoded or generated goes here
PYTHON=${PYTHON:-python}
METHODS=${METHODS:-erm full_finetuning aim_fair}

# --- demo ----------------------------------------------------------------------------------------
# Sizes, epochs and rates were chosen on the demo's validation faces; see README, "The demo".
demo() {
  MODEL=demo PROMPTS=prompts/Smiling_Male_contextual_head_poses_50.json IMAGES_PER_CELL=300 \
    OUT="$DATA/synthetic_demo" bash stable_diffusion/generation.sh
  $PYTHON train.py --setting demo --methods $METHODS --seeds ${SEEDS:-100 200 300} \
    --dataset demo --data-root "$DATA/demo" --synthetic-root "$DATA/synthetic_demo" \
    --results "$RESULTS" --store-dir "$DATA/store" $DEMO_FLAGS "$@"
}
DEMO_FLAGS="--pretrained none --image-size 64 --size 1500 --synthetic-ratio 0.8 --batch-size 64
  --pretrain-epochs 15 --pretrain-lr 0.01 --finetune-epochs 5 --finetune-lr 0.01"

# A ResNet-18 trained on a balanced sample of the demo photographs judges the generated images.
judge() {
  for target in Smiling Male; do
    protected=$([ $target = Smiling ] && echo Male || echo Smiling)
    $PYTHON train.py --setting "judge_$target" --methods erm --seeds 100 --dataset demo \
      --data-root "$DATA/demo" --target $target --protected $protected --minority 0.5 --size 3000 \
      --pretrained none --image-size 64 --batch-size 64 --pretrain-epochs 15 --pretrain-lr 0.01 \
      --results "$RESULTS" --store-dir "$DATA/store"
  done
  $PYTHON -m stable_diffusion.audit \
    --images "$DATA/synthetic_demo/contextual_head_poses_50/Smiling_Male" \
    --judge "$RESULTS/judge_Smiling/erm/seed100/classifier.pt" \
    --judge "$RESULTS/judge_Male/erm/seed100/classifier.pt"
}

# --- the paper's settings ------------------------------------------------------------------------
# Expected (paper, Table 3, worst-case EO): CelebA Smiling/Male  ERM 89.23 / 71.52 / 23.84,
#   full fine-tuning 88.77 / 82.74 / 6.83, AIM-Fair 89.02 / 84.20 / 6.07 (ACC / WST / EO).
# Cost: 42,000 images a pair of attributes (generation.sh), then 10 seeds x 25 epochs a method.
CELEBA=${CELEBA:-$DATA/celeba}         # img_align_celeba/, list_attr_celeba.txt, list_eval_partition.txt
UTKFACE=${UTKFACE:-$DATA/utkface}      # the *.jpg of the aligned and cropped archive
SYNTHETIC=${SYNTHETIC:-$DATA/synthetic}
PAPER_SEEDS=${SEEDS:-100 200 300 400 500 600 700 800 900 1000}

celeba() {  # target protected [table]
  $PYTHON train.py --setting "celeba_$1_$2" --paper-table "${3:-3}" --methods $METHODS --seeds $PAPER_SEEDS \
    --dataset celeba --data-root "$CELEBA" --target "$1" --protected "$2" --size 20000 \
    --synthetic-root "$SYNTHETIC" --prompt-set contextual_head_poses_50 --results "$RESULTS" \
    --store-dir "$DATA/store" --pretrain-lr 0.01 --finetune-lr 0.06 --top-k 55
}
utkface() {
  $PYTHON train.py --setting utkface_Female_White --paper-table 3 --methods $METHODS --seeds $PAPER_SEEDS \
    --dataset utkface --data-root "$UTKFACE" --target Female --protected White --size 10000 \
    --test-size 3200 --synthetic-root "$SYNTHETIC" --prompt-set contextual_head_poses_50 \
    --results "$RESULTS" --store-dir "$DATA/store" --pretrain-lr 0.01 --finetune-lr 0.06 --top-k 55
}
table3() { celeba Smiling Male; celeba Smiling Young; utkface; }
table11() { celeba Male Young 11; }  # generated images: those of Young/Male with the cells transposed

case "${1:-demo}" in
  demo | judge | table3 | table11 | utkface) "${1:-demo}" "${@:2}" ;;
  celeba) celeba "${2:-Smiling}" "${3:-Male}" ;;
  *) echo "error: no experiment '$1'; there are: demo judge table3 table11 celeba utkface" >&2; exit 2 ;;
esac
