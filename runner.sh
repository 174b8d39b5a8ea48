#!/usr/bin/env bash
# The experiments, one shell line each. Values can be set from the environment.
#
#   bash runner.sh                        the demo, end to end, on 2 CPU cores, without any download
#   bash runner.sh judge                  how well its generated faces show what their prompts say
#   bash runner.sh table4                 Table 4 on the demo: SETTING=demo is the default
#   SETTING=celeba bash runner.sh table4  Table 4 as in the paper, CelebA Smiling/Male (needs a GPU);
#   SETTING=celeba PROTECTED=Young ...    Smiling/Young; TARGET=Young for Young/Male
#   SETTING=utkface bash runner.sh table3
#   SETTING=fairface bash runner.sh fairif-table5    FairIF's tables: demo, celeba, fairface
#   bash runner.sh table3 --tensorboard   further flags go to every train.py of the experiment
#   bash runner.sh table3 --launcher slurm --slurm partition=gpu gpus=1 cpus=8    on a cluster: its
#                                         rows and seeds are one job array, its tables the last job
#
# A table is the folder $RESULTS/<setting>/<table>/ with summary.md, summary.csv and figures/. Its
# rows share the setting's pre-trained models, and a run that another table holds is copied. Stopped
# at any moment, the same command goes on. Every train.py line is printed so that it can be pasted.
# The comments say what the paper prints: ACC / WST / EO of CelebA Smiling/Male, EO in the worst
# case; with SETTING=celeba it stands beside ours (PAPER=no leaves it out, where the paper has no
# such row).
set -euo pipefail
cd "$(dirname "$0")"

RESULTS=${RESULTS:-results}
DATA=${DATA:-data}                     # everything unpacked, decoded or generated goes here
PYTHON=${PYTHON:-python}
METHODS=${METHODS:-erm full_finetuning aim_fair}
CELEBA=${CELEBA:-$DATA/celeba}         # img_align_celeba/, list_attr_celeba.txt, list_eval_partition.txt
UTKFACE=${UTKFACE:-$DATA/utkface}      # the *.jpg of the aligned and cropped archive
FAIRFACE=${FAIRFACE:-$DATA/fairface}   # fairface_label_train.csv, fairface_label_val.csv, train/, val/
MNIST=${MNIST:-$DATA/mnist}            # its four idx files, .gz or not
SYNTHETIC=${SYNTHETIC:-$DATA/synthetic}
SETTING=${SETTING:-demo}
MORE=("${@:2}")                        # flags after an experiment's name go to each train.py of it
JOBS=${JOBS:-1}                        # seeds trained at once, each by a process of its own
QUEUE=()                               # with --launcher slurm: python's arguments, line by line
case " ${MORE[*]/#--launcher=/--launcher } " in *" --launcher slurm "*) SLURM=yes ;; *) SLURM= ;; esac

# glibc gives a step's memory back to the system and asks for it again: on a CPU a tenth of the time.
export MALLOC_MMAP_THRESHOLD_=4294967296 MALLOC_TRIM_THRESHOLD_=17179869184 MALLOC_TOP_PAD_=268435456

# --- demo ----------------------------------------------------------------------------------------
# Sizes, epochs and rates were chosen on the demo's validation faces; see README, "The demo".
demo() {
  images contextual_head_poses_50
  rows . "" --methods $METHODS
}
DEMO_NET="--pretrained none --image-size 64 --min-crop 0.4 --batch-size 32 --pretrain-lr 0.02"
DEMO_FLAGS="$DEMO_NET --size 1500 --synthetic-ratio 0.8 --synthetic-biased-ratio 0.44
  --pretrain-epochs 8 --milestone 6 --finetune-epochs 2 --finetune-lr 0.01"

# A ResNet-18 trained on a balanced sample of the demo photographs judges the generated images.
judge() {
  for target in Smiling Male; do
    protected=$([ $target = Smiling ] && echo Male || echo Smiling)
    $PYTHON train.py --setting "judge_$target" --methods erm --seeds 100 --dataset demo \
      --data-root "$DATA/demo" --target $target --protected $protected --minority 0.5 --size 2200 \
      $DEMO_NET --pretrain-epochs 14 --milestone 11 --results "$RESULTS" \
      --store-dir "$DATA/store"
  done
  $PYTHON -m stable_diffusion.audit \
    --images "$DATA/synthetic_demo/contextual_head_poses_50/Smiling_Male" \
    --judge "$RESULTS/judge_Smiling/erm/seed100/classifier.pt" \
    --judge "$RESULTS/judge_Male/erm/seed100/classifier.pt"
}

# --- settings ------------------------------------------------------------------------------------
choose() {  # sets FOLDER, SEEDS and FLAGS from SETTING, TARGET and PROTECTED
  local target=Smiling protected=Male paper_seeds="100 200 300 400 500 600 700 800 900 1000"
  [ "$SETTING" != utkface ] || { target=Female; protected=White; }
  target=${TARGET:-$target} protected=${PROTECTED:-$protected}
  FOLDER=${SETTING}_${target}_$protected
  case $SETTING in
    demo)
      [ $target$protected != SmilingMale ] || FOLDER=demo
      FLAGS=(--dataset demo --data-root "$DATA/demo" --synthetic-root "$DATA/synthetic_demo" $DEMO_FLAGS) ;;
    celeba)
      FLAGS=(--dataset celeba --data-root "$CELEBA" --size 20000) ;;
    utkface)
      FLAGS=(--dataset utkface --data-root "$UTKFACE" --size 10000 --test-size 3200) ;;
    *) echo "error: SETTING=$SETTING is none of demo, celeba and utkface" >&2; exit 2 ;;
  esac
  if [ $SETTING = demo ]; then SEEDS=${SEEDS:-100 200 300}; else
    SEEDS=${SEEDS:-$paper_seeds}
    FLAGS+=(--synthetic-root "$SYNTHETIC" --pretrain-lr 0.01 --finetune-lr 0.06 --top-k 55)
  fi
  FLAGS+=(--target $target --protected $protected --results "$RESULTS" --store-dir "$DATA/store")
}
rows() {  # folder of the table, its number in the paper or "", flags of train.py
  local flags=("${FLAGS[@]}")
  if [ -n "$2" ] && [ $SETTING != demo ] && [ "${PAPER:-}" != no ]; then flags+=(--paper-table "$2"); fi
  local folder=$FOLDER/$1
  flags=(train.py --setting "${folder%/.}" "${flags[@]}" --seeds)
  if [ $JOBS -gt 1 ] && [[ " ${MORE[*]} " != *" --launcher"[\ =]* ]]; then
    # a process a seed; the line after it finds their runs and sums them up
    local threads=${OMP_NUM_THREADS:-$((($(nproc) + JOBS - 1) / JOBS))}
    printf '%s\n' $SEEDS | OMP_NUM_THREADS=$threads TQDM_DISABLE=1 \
      xargs -P $JOBS -I {} $PYTHON "${flags[@]}" {} "${@:3}" "${MORE[@]}"
  fi
  { printf '\n$'; printf ' %q' $PYTHON "${flags[@]}" $SEEDS "${@:3}" "${MORE[@]}"; echo; } >&2
  queue "${flags[@]}" $SEEDS "${@:3}" "${MORE[@]}"
}
queue() { if [ $SLURM ]; then QUEUE+=("${*@Q}"); else $PYTHON "$@"; fi; }
saved() { queue -m "$@"; }  # a command on finished runs
best() {  # folder, name, the paper's row, rows to choose from by validation accuracy
  saved utils.reporting.best "$RESULTS/$FOLDER/$1" --name "$2" --paper-row "$3" --rows "${@:4}"
}
compared() {  # folder, row: the table with paired differences to that row, ERM where none is given
  saved utils.reporting.tables "$RESULTS/$FOLDER/$1" --baseline "${2:-erm}" --latex
  saved utils.reporting.report "$RESULTS/$FOLDER/$1"
}
images() {  # prompt sets; the paper's images take hours: stable_diffusion/generation.sh
  [ $SETTING = demo ] || return 0
  for set in "$@"; do
    MODEL=demo PROMPTS=$(prompts_of "$set") IMAGES_PER_CELL=${IMAGES_PER_CELL:-300} \
      OUT="$DATA/synthetic_demo" bash stable_diffusion/generation.sh
  done
}
prompts_of() {  # prompt set; the file of the pair, or of the pair turned round
  local file; file=prompts/$(flag --target)_$(flag --protected)_$1.json
  [ -e "$file" ] || file=prompts/$(flag --protected)_$(flag --target)_$1.json
  echo "$file"
}
flag() {  # a flag's value in FLAGS
  local i
  for i in "${!FLAGS[@]}"; do [ "${FLAGS[i]}" != "$1" ] || echo "${FLAGS[i + 1]}"; done
}
each() { for block in stem layer1 layer2 layer3 layer4 fc; do echo "$1_$block"; done; }
on_demo() { if [ $SETTING = demo ]; then echo "$1"; else echo "$2"; fi; }

# --- tables --------------------------------------------------------------------------------------
# Costs: passes over the 20,000 images a seed, and the demo's three seeds on one core. The 15 passes
# of ERM are made once for all tables of a setting; the images cost 3.5 EFLOP a pair and prompt set.
# ERM 88.20/70.10/25.30, CVaR DRO 87.30/74.00/22.80, EIIL 87.90/75.60/19.70, LfF 87.10/77.50/17.00,
# JTT 88.00/74.80/19.40, MAPLE 88.10/72.00/19.60, DiGA 88.40/81.90/7.40, AIM-Fair 89.02/84.20/6.07
# Cost: CVaR DRO 15, EIIL 16, LfF 30, JTT 16 and 750 times its share of errors, MAPLE about 60, DiGA
# 300 of BYOL and 15, AIM-Fair 13. Demo: 3 hours.
table1() { debiasing table1 1; compared table1; }
debiasing() {  # folder, number, further flags
  # The demo's 47 steps an epoch are few: references train longer, and CVaR averages over half of a
  # batch of 32, for 10% are 3 images. Nothing here was searched.
  rows "$1" "$2" --methods erm lff aim_fair "${@:3}"
  rows "$1" "$2" --methods cvar_dro "${@:3}" $(on_demo "--set alpha=0.5" "")
  rows "$1" "$2" --methods eiil "${@:3}" $(on_demo "--set reference_epochs=3" "")
  rows "$1" "$2" --methods jtt "${@:3}" $(on_demo "--set first_epochs=5 upweight=10" "")
  rows "$1" "$2" --methods maple "${@:3}" $(on_demo "--set reference_epochs=3" "")
  edited "$RESULTS/$FOLDER/$1/erm/seed${SEEDS%% *}/train.csv" || return 0
  rows "$1" "$2" --methods diga --edits "$EDITS" "${@:3}" $(on_demo "--set byol_epochs=6" "")
}
edited() {  # list of training images; makes DiGA's edits on the demo, elsewhere they are made before
  if [ $SLURM ] && [ ! -e "$1" ]; then
    echo "DiGA waits for $1: give the same line again after the jobs"; return 1
  fi
  if [ $SETTING = demo ]; then
    EDITS=$DATA/edits_demo/${FOLDER}_$(cksum < "$1" | cut -d' ' -f1)
    $PYTHON -m stable_diffusion.edit --model demo --prompts "$(prompts_of plain)" \
      --list "$1" --images "$(dirname "$(find "$DATA/demo" -name 000001.jpg)")" --out "$EDITS"
  elif [ ! -f "${EDITS:=$DATA/edits}/manifest.csv" ]; then
    echo "DiGA is left out: no manifest.csv in EDITS=$EDITS; python -m stable_diffusion.edit makes it"
    return 1
  fi
}
# 50%: ERM 87.50/67.80/26.10, AIM-Fair 88.85/83.99/6.28; 25%: 87.10/65.90/27.70, 88.89/82.54/7.59;
# 10%: 86.90/62.80/28.90, 87.90/81.73/8.16. Cost: 85% of Table 1's.
table2() {
  local size; size=$(echo "${FLAGS[*]}" | sed -E 's/.*--size ([0-9]+).*/\1/')
  for share in 50 25 10; do
    debiasing table2/$share "2 ($share%)" --size $((size * share / 100))
    compared table2/$share
  done
}
# ERM 89.23/71.52/23.84, synthetic only 85.98/78.52/7.87, supplementation 89.77/73.67/21.96,
# repairing 89.72/75.05/21.18, linear probing 89.69/77.41/17.51, full 88.77/82.74/6.83,
# AIM-Fair 89.02/84.20/6.07. Cost: 15 to 30 a row trained from the start, 10 fine-tuned, AIM-Fair 13
# with its mask. Demo: 50 minutes.
table3() {
  rows table3 3 --methods erm synthetic_only data_supplementation data_repairing linear_probing \
    full_finetuning aim_fair
  compared table3
}
# best random 89.33/82.17/9.11, update one block 90.04/80.64/12.45, freeze one 89.06/83.48/7.00,
# cosine 88.85/83.33/8.40, AIM-Fair 89.02/84.20/6.07. Ours beside them: a random mask of AIM-Fair's
# size, and AIM-Fair with batch norm's running statistics frozen too. Cost: 10 to 13 each of 20 rows.
# Demo: 80 minutes.
RANDOM_ROWS="random_40 random_55 random_70 random_85"
table4() {
  rows table4 4 --methods $RANDOM_ROWS random_mask $(each update) $(each freeze) aim_fair
  rows table4 4 --methods aim_fair --criterion cosine --name aim_fair_cosine \
    --paper-row "Selective fine-tuning (cosine similarity)"
  rows table4 "" --methods aim_fair --batch-norm freeze --name aim_fair_frozen_batch_norm
  best table4 best_random "Best random selection" $RANDOM_ROWS
  best table4 best_update "Best sub-tuning (update one block)" $(each update)
  best table4 best_freeze "Best sub-tuning (freeze one block)" $(each freeze)
  saved utils.reporting.plots "$RESULTS/$FOLDER/table4"  # of the searched rows the choice alone
  compared table4 aim_fair
  saved utils.reporting.masks "$RESULTS/$FOLDER/table4"
}
# trained on synthetic only: plain 71.65/43.28/34.20, contextual (25) 81.85/69.73/16.30,
# contextual (50) 82.66/72.22/5.07, with head poses 85.98/78.52/7.87. Cost: 15 a row, and the images
# of all four sets. Demo: 70 minutes, 8 of them for the images.
table5() {
  images plain contextual_25 contextual_50 contextual_head_poses_50
  prompts() { rows table5 5 --methods synthetic_only --prompt-set $1 --name $1 --paper-row "$2"; }
  prompts plain "Plain prompt (1)"
  prompts contextual_25 "Contextual prompts (25)"
  prompts contextual_50 "Contextual prompts (50)"
  prompts contextual_head_poses_50 "Contextual + head poses (50)"
  compared table5 plain
}
# full 88.77/82.74/6.83; 4:6 89.23/83.90/8.78, 3:7 88.90/83.52/7.72, 2:8 88.97/83.16/7.30,
# 1:9 89.02/84.20/6.07. Cost: 13 a row. Demo: 26 minutes.
table6() {
  rows table6 6 --methods full_finetuning
  for m in 4 3 2 1; do
    rows table6 6 --methods aim_fair --synthetic-minority 0.$m --name aim_fair_${m}_$((10 - m)) \
      --paper-row "AIM-Fair $m:$((10 - m))"
  done
  compared table6 full_finetuning
}
# 0.5x 89.51/80.80/10.31, 1x 89.02/84.20/6.07, 1.5x 88.34/81.25/7.13, 2x 88.81/83.36/6.08
# Table 10, UTKFace: ERM 88.86/79.58/16.59, 0.5x 88.91/82.61/6.74, 1x 88.30/84.26/4.81,
# 1.5x 88.23/83.70/5.45, 2x 88.98/83.04/6.73. The demo has images for 0.8x. Cost: 8, 13, 18 and 23.
# Demo: 22 minutes.
table7() {
  local number=7; [ $SETTING != utkface ] || { number=10; rows table10 10 --methods erm; }
  for ratio in $(on_demo "0.2 0.4 0.6 0.8" "0.5 1 1.5 2"); do
    rows table$number $number --methods aim_fair --synthetic-ratio $ratio \
      --name aim_fair_${ratio}x --paper-row "AIM-Fair ${ratio}x synthetic"
  done
  compared table$number aim_fair_$(on_demo 0.8 1)x
}
table10() { if [ $SETTING != demo ]; then SETTING=utkface; choose; fi; table7; }
# The scarce cells' share as JTT's error set estimates it, without group labels: what the paper's 1:9
# rests on.
bias-ratio() {
  rows bias-ratio "" --methods jtt $(on_demo "--set first_epochs=5 upweight=10" "")
  saved utils.reporting.bias_ratio "$RESULTS/$FOLDER/bias-ratio/jtt"
}
# ViT-S/32; EO is the mean of the two differences here: ERM 89.00/71.12/20.18, synthetic only
# 86.19/83.73/2.32, supplementation 88.97/72.89/19.72, full 89.37/83.95/4.17, LoRA 90.79/86.20/3.14,
# LTGC 88.75/78.17/17.20, AIM-Fair 90.89/87.79/3.27. Cost: as Table 3's, with another backbone.
table8() {
  rows table8 "8 (ViT-S/32)" --backbone vit_small_patch32 --top-k 0.887 --methods erm \
    synthetic_only data_supplementation full_finetuning lora ltgc aim_fair
  compared table8
}
# ERM 89.23/71.52/23.84, LTGC 89.05/75.42/21.27, AIM-Fair 89.02/84.20/6.07. Cost: 15, 27, 13.
table9() { rows table9 9 --methods erm ltgc aim_fair; compared table9; }
# Male/Young: ERM 97.16/93.50/5.37, full 96.47/93.79/3.24, AIM-Fair 96.00/93.86/3.00. The generated
# images are those of Young/Male with the cells transposed (on the demo: of Smiling/Male). Cost: 15,
# 10, 13.
table11() {
  TARGET=Male PROTECTED=$(on_demo Smiling Young); choose
  rows table11 11 --methods erm full_finetuning aim_fair
  compared table11
}
# the fine-tuning's rate, chosen on validation; the paper prints ten times these values. Cost: 13 each.
rates() {
  local names=()
  for rate in $(on_demo "0.005 0.01 0.02" "0.04 0.05 0.06"); do
    rows rates "" --methods aim_fair --finetune-lr $rate --name aim_fair_lr$rate
    names+=(aim_fair_lr$rate)
  done
  best rates best_rate "" "${names[@]}"
  saved utils.reporting.plots "$RESULTS/$FOLDER/rates"
  compared rates aim_fair_lr$(on_demo 0.01 0.06)
}

# --- figures: drawn from saved runs; a missing run is made first ----------------------------------
figure1() {  # accuracy against EO and WST of every strategy
  table3; table4
  saved utils.reporting.plots "$RESULTS/$FOLDER/table3" --with "$RESULTS/$FOLDER/table4"
}
figure2() {  # freezing one block: rows of Table 4
  rows figure2 "" --methods full_finetuning $(each freeze) aim_fair
  compared figure2 full_finetuning
}
figure5() {  # top-k; the paper's best is 55. Cost: 13 each
  for k in 40 45 50 55 60; do rows figure5 "" --methods aim_fair --top-k $k --name aim_fair_k$k; done
  compared figure5 aim_fair_k55
}
PROMPT_SETS="plain contextual_25 contextual_50 contextual_head_poses_50"
figure4() {  # the images of smiling men, one row a prompt set; the paper: contextual ones vary more
  images $PROMPT_SETS
  grids --cells 1_1
}
# t-SNE of the test images' features by (y, a); the paper: ERM's part by the protected attribute,
# with synthetic data too, AIM-Fair's less. Ours says beside it how well they tell the attribute.
figure6() {
  rows figure6 "" --methods erm data_supplementation aim_fair
  saved models.tsne "$RESULTS/$FOLDER/figure6" --rows erm data_supplementation aim_fair \
    --data-root "$(flag --data-root)" --store-dir "$DATA/store"
  saved utils.reporting.report "$RESULTS/$FOLDER/figure6"
}
# the images of every cell and prompt set; the paper's are contextual ones of Smiling/Young
# (SETTING=celeba PROTECTED=Young) and of Female/White (SETTING=utkface)
figure7() { images $PROMPT_SETS; grids; }
grids() {  # further flags; drawn from the prompt sets that there are
  $PYTHON -m stable_diffusion.grids "$(flag --synthetic-root)" --target "$(flag --target)" \
    --protected "$(flag --protected)" --out "$RESULTS/$FOLDER/figures" "$@"
  [ ! -e "$RESULTS/$FOLDER/report.html" ] || $PYTHON -m utils.reporting.report "$RESULTS/$FOLDER"
}
figure8() {  # where the selected tensors lie; the paper: mostly in early layers
  rows figure8 "" --methods aim_fair
  saved utils.reporting.masks "$RESULTS/$FOLDER/figure8"
}
celeba() {
  SETTING=celeba TARGET=${1:-Smiling} PROTECTED=${2:-Male} MORE=("${@:3}")
  choose
  rows . 3 --methods $METHODS
}

# --- FairIF's tables and figures -----------------------------------------------------------------
. models/fairif/experiments.sh

EXPERIMENTS="demo judge celeba table1 table2 table3 table4 table5 table6 table7 table8 table9 table10
  table11 bias-ratio rates figure1 figure2 figure4 figure5 figure6 figure7 figure8 fairif-table1 fairif-table2
  fairif-table3 fairif-table4 fairif-table5 fairif-table6 fairif-table11 fairif-figure2
  fairif-strategies"
name=${1:-demo}
case " $(echo $EXPERIMENTS) " in
  *" $name "*) ;;
  *) echo "error: no experiment '$name'; there are:" $EXPERIMENTS >&2; exit 2 ;;
esac
[[ $JOBS =~ ^[1-9][0-9]*$ ]] || { echo "error: JOBS=$JOBS is no whole number above 0" >&2; exit 2; }
case $name in judge | figure4 | figure7)
  [ $# -lt 2 ] || { echo "error: $name takes no further flags: ${*:2}" >&2; exit 2; } ;;
esac
case $name in
  celeba) ;;  # chooses for itself
  fairif-table5 | fairif-table6 | fairif-table11 | fairif-figure2) fairif_choose ;;
  *) choose ;;
esac
case $name in table* | figure* | rates | bias-ratio | fairif-strategies) images contextual_head_poses_50 ;; esac
submit() { [ ${#QUEUE[@]} -eq 0 ] || printf '%s\n' "${QUEUE[@]}" | $PYTHON -m utils.job_array; }
"$name" "${@:2}"; submit; exit  # on one line: this file may be edited while an experiment runs
