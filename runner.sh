#!/usr/bin/env bash
# The experiments: settings on top, then one function per table or figure. Edit them.
#
#   bash runner.sh                           the demo, end to end: 2 CPU cores, without a download
#   bash runner.sh table3                    Table 3 on the demo's faces
#   SETTING=celeba bash runner.sh table3     as in the paper: CelebA Smiling/Male (needs a GPU)
#   SETTING=utkface bash runner.sh table3    Female/White; TARGET=, PROTECTED=: another pair
#   bash runner.sh celeba Young Male         METHODS on one pair
#   bash runner.sh repair                    your own classifier: see repair.sh
#   bash runner.sh table3 --tensorboard      further flags go to every train.py of the experiment
#   bash runner.sh table3 --launcher slurm --slurm partition=gpu gpus=1 cpus=8
#
# Every command is printed so that it can be pasted. Interrupted? Rerun the same line to resume. A
# table is the folder $RESULTS/<setting>/<table>/ with summary.md, summary.csv and figures/. Where
# the paper has a row it stands beside ours (utils/reporting/paper_tables). Cost is a row's, in
# passes over the 20,000 images a seed (ERM's 15 are shared by a setting's tables); the demo's
# passes of 1,500 take 2 s each.
set -euo pipefail
EXPERIMENT=${1:-demo}; [ $# -eq 0 ] || shift
[ "$EXPERIMENT" != repair ] || exec bash "$(dirname "$0")/repair.sh" "$@"
cd "$(dirname "$0")"

SETTING=${SETTING:-demo}                 # demo, celeba, utkface; FairIF's: demo, celeba, fairface
RESULTS=${RESULTS:-results}
DATA=${DATA:-data}                       # everything unpacked, decoded or generated goes here
SYNTHETIC=${SYNTHETIC:-$DATA/synthetic}  # images made by stable_diffusion/generation.sh
EDITS=${EDITS:-$DATA/edits}              # DiGA's, made by python -m stable_diffusion.edit
PYTHON=${PYTHON:-python}
JOBS=${JOBS:-}                           # seeds at once; the demo: 2

PAPER=aim_fair
case $EXPERIMENT in  # these choose their own setting or pair
  celeba) SETTING=celeba
    case ${1:--} in -*) ;; *) TARGET=$1; shift ;; esac
    case ${1:--} in -*) ;; *) PROTECTED=$1; shift ;; esac ;;
  judge | domain-gap) SETTING=demo ;;
  table11) TARGET=Male; PROTECTED=Young; [ "$SETTING" != demo ] || PROTECTED=Smiling ;;
  fairif-table5 | fairif-table6 | fairif-table11 | fairif-figure2) PAPER=fairif ;;
esac
pair() { TARGET=${TARGET:-$1} PROTECTED=${PROTECTED:-$2}; }
PROMPT_SET=contextual_head_poses_50 TEN="100 200 300 400 500 600 700 800 900 1000"
RATIOS="aim_fair_0.5x aim_fair_1x aim_fair_1.5x aim_fair_2x" RATIO=aim_fair_1x
BEST_RATE=best_paper_rate RATE=aim_fair_lr0.06  # of 0.04, 0.05, 0.06; printed are ten times these
RULES=${RULES:-aim_fair full_finetuning random_mask aim_fair_t_statistic aim_fair_fisher
  aim_fair_ratio aim_fair_channels aim_fair_interpolated aim_fair_real_statistics full_interpolated
  full_real_statistics full_filtered counterweighted best_top_k
  full_frozen_batch_norm best_batch_norm} NARROW='' WIDE=''
EPOCHS=15 MILESTONE=10 AIM_FAIR="--pretrain-lr 0.01 --finetune-lr 0.06 --top-k 55"
# FairIF: the paper states neither optimiser nor batch; here SGD with momentum 0.9 and 128.
DATA_FLAGS="--dataset $SETTING --size all"
TRAIN_FLAGS="--backbone resnet18_h128 --pretrained none --pretrain-lr 0.0002 --pretrain-epochs 50
  --pretrain-milestone 50"
case $PAPER-$SETTING in
  *-demo)  # how these were chosen: docs/protocol.md
    METHODS=${METHODS:-erm erm_longer linear_probing full_finetuning aim_fair} JOBS=${JOBS:-2}
    NARROW="--steps 5 --guidance 3" WIDE="--steps 3 --guidance 8"  # gap to the photographs
    SYNTHETIC=$DATA/synthetic_narrow SAMPLER=$NARROW
    pair Smiling Male; DATA_ROOT=$DATA/demo SIZE=1500 EPOCHS=24 MILESTONE=18
    DATA_FLAGS="--dataset demo --size $SIZE --synthetic-ratio 0.8 --synthetic-biased-ratio 0.44"
    TRAIN_FLAGS="--backbone resnet18_quarter --pretrained none --image-size 64 --min-crop 0.4
      --batch-size 32 --pretrain-lr 0.02 --pretrain-epochs $EPOCHS --pretrain-milestone $MILESTONE
      --finetune-lr 0.005 --finetune-epochs 5 --best-epoch class-accuracy --precision fp32"
    SEEDS=${SEEDS:-100 200 300 400 500} BEST_RATE=best_rate RATE=aim_fair_lr0.005
    RATIOS="aim_fair_0.2x aim_fair_0.4x aim_fair_0.6x aim_fair_0.8x" RATIO=aim_fair_0.8x ;;
  aim_fair-celeba)
    pair Smiling Male; DATA_ROOT=${CELEBA:-$DATA/celeba} SIZE=20000
    DATA_FLAGS="--dataset celeba --size $SIZE" TRAIN_FLAGS=$AIM_FAIR SEEDS=${SEEDS:-$TEN} ;;
  aim_fair-utkface)  # its prompts name no head poses
    pair Female White; DATA_ROOT=${UTKFACE:-$DATA/utkface} SIZE=10000 PROMPT_SET=contextual_50
    DATA_FLAGS="--dataset utkface --size $SIZE --test-size 3200 --prompt-set $PROMPT_SET"
    TRAIN_FLAGS=$AIM_FAIR SEEDS=${SEEDS:-$TEN} ;;
  fairif-celeba) pair Blond_Hair Male; DATA_ROOT=${CELEBA:-$DATA/celeba} ;;
  fairif-fairface) pair Male White; DATA_ROOT=${FAIRFACE:-$DATA/fairface} ;;
  *) echo "error: $EXPERIMENT has no SETTING=$SETTING; there are demo, celeba and utkface, for" \
       "FairIF's image tables demo, celeba and fairface" >&2; exit 2 ;;
esac
METHODS=${METHODS:-erm full_finetuning aim_fair} SEEDS=${SEEDS:-100 200 300}
FOLDER=${SETTING}_${TARGET}_$PROTECTED; [ "$FOLDER" != demo_Smiling_Male ] || FOLDER=demo
MORE=("$@") BLIND=
case " $* " in *" --launcher slurm "* | *" --launcher=slurm "*) SLURM=yes ;; *) SLURM= ;; esac
# glibc gives a step's memory back to the system and asks for it again: on a CPU a tenth of the time
export MALLOC_MMAP_THRESHOLD_=4294967296 MALLOC_TRIM_THRESHOLD_=17179869184
export MALLOC_TOP_PAD_=268435456

# --- what the lines are made of (for bash 3.2, where an empty "${MORE[@]}" is an unset variable) --
train() {  # folder of the table, flags of train.py
  local folder=$FOLDER/$1; shift
  run train.py --setting "${folder%/.}" $DATA_FLAGS $TRAIN_FLAGS --data-root "$DATA_ROOT" \
    --synthetic-root "$SYNTHETIC" --target "$TARGET" --protected "$PROTECTED" \
    --results "$RESULTS" --store-dir "$DATA/store" ${JOBS:+--jobs $JOBS} --seeds $SEEDS "$@" \
    ${MORE[@]+"${MORE[@]}"}
}
compare() {  # folder, rows, further flags: paired differences are to the first row
  local folder=$1; shift; train $folder --baseline $1 --methods "$@"
}
run() { show "$@"; $PYTHON "$@"; }
show() { { printf '\n$'; printf ' %q' $PYTHON "$@"; echo; } >&2; }
after() {  # a command on finished runs
  if [ "$SLURM" ]; then echo "When the jobs have ended:" >&2; show -m "$@"; else run -m "$@"; fi
}
images() {  # prompt sets: the demo's images are made here; see generation.sh for the paper's
  for set in "$@"; do
    MODEL=demo PROMPTS=$(prompts "$set") OUT=$SYNTHETIC PYTHON=$PYTHON SAMPLER=$SAMPLER \
      bash stable_diffusion/generation.sh
  done
}
prompts() {  # prompt set: the file of the pair, or of the pair turned round
  local file=prompts/${TARGET}_${PROTECTED}_$1.json
  if [ -e "$file" ]; then echo "$file"; else echo "prompts/${PROTECTED}_${TARGET}_$1.json"; fi
}
on_demo() { [ "$SETTING" != demo ] || echo "$@"; }  # a --set of yours takes the place of these

# --- the demo: README, "The demo", says what it prints and how long it takes ----------------------
demo() { compare . $METHODS; }
domain-gap() {  # images of two samplers: the demo's, and others that lie further from photographs
  gap narrow "$NARROW"; gap wide "$WIDE"
  compare domain-gap erm erm_longer
}
gap() {  # name, sampler: the rows that learn from its images
  local row SYNTHETIC=$DATA/synthetic_$1 SAMPLER=$2
  images $PROMPT_SET
  for row in synthetic_only linear_probing full_finetuning aim_fair; do
    train domain-gap --methods $row --name ${row}_$1 --no-tables
  done
}
longer() {  # is the bias that of a model stopped early? ERM 2 and 4 times as long, repaired too
  local name times
  for name in erm_2x erm_4x full_finetuning_4x aim_fair_4x; do
    times=${name##*_}; times=${times%x}
    train longer --methods ${name%_?x} --name $name --no-tables \
      --pretrain-epochs $((EPOCHS * times)) --pretrain-milestone $((MILESTONE * times))
  done
  compare longer erm erm_longer full_finetuning aim_fair
}
rules() {  # rules of our own beside the paper's, in both gaps; Cost: 10 to 13 a row, filtered 20
  local gap SAMPLER=$NARROW SYNTHETIC=$SYNTHETIC
  [ "$SETTING" = demo ] || { compare rules $RULES; return; }
  for gap in narrow wide; do
    SYNTHETIC=$DATA/synthetic_$gap; [ $gap = narrow ] || SAMPLER=$WIDE
    images $PROMPT_SET; compare rules/$gap $RULES
  done
}
# Does Delta1 or Delta2 predict what updating a tensor does? Each of 62 and each block alone, from
# the same ERM model, on validation images. Cost: 690 (10 a part); the demo, by 2 epochs: 109.
tensor-effect() { train tensor-effect --methods tensor_effect $(on_demo --finetune-epochs 2); }
judge() {  # a ResNet-18 trained on a balanced sample of the photographs judges the images
  local judge="--methods erm --minority 0.5 --size 2200 --backbone resnet18 --seeds 100
    --pretrain-epochs 14 --pretrain-milestone 11"
  train judge_target $judge
  train judge_protected $judge --target "$PROTECTED" --protected "$TARGET"
  judge=$RESULTS/$FOLDER/judge_target/erm/seed100/classifier.pt
  run -m stable_diffusion.audit --images "$SYNTHETIC/$PROMPT_SET/${TARGET}_$PROTECTED" \
    --judge "$judge" --judge "${judge/judge_target/judge_protected}" \
    --dataset $SETTING --data-root "$DATA_ROOT" --features "$judge"
}
celeba() {  # beside the paper's table that has the pair
  local number=3
  case ${TARGET}_$PROTECTED in Young_Male) number=1 ;; Male_Young) number=11 ;; esac
  train . --paper-table $number --methods $METHODS
}
# --- AIM-Fair's tables ---------------------------------------------------------------------------
# The compared methods. Cost: CVaR DRO 15, EIIL 16, LfF 30, JTT 16 and 750 times its share of
# errors, MAPLE about 60, DiGA 300 of BYOL and 15, AIM-Fair 13.
table1() { debiasing table1 1 $SIZE; }
table2() {  # the same with fewer training images. Cost: 85% of Table 1's
  for share in 50 25 10; do debiasing table2/$share "2 ($share%)" $((SIZE * share / 100)); done
}
debiasing() {  # folder, the paper's table, training images
  local diga=
  [ "$SETTING" != demo ] || edits "$1" "$3"
  if [ -f "$EDITS/manifest.csv" ]; then diga=diga; else
    echo "DiGA is left out: EDITS=$EDITS holds no edited images; python -m stable_diffusion.edit" \
      "makes them of the images that an ERM run's train.csv lists" >&2
  fi
  # The demo's 47 steps an epoch are few: references train longer, four methods start from ERM, and
  # what decides a row is searched, as often for each: docs/protocol.md.
  train "$1" --paper-table "$2" --size "$3" ${diga:+--edits "$EDITS"} --methods erm erm_longer \
    cvar_dro eiil lff jtt maple $diga aim_fair --baseline erm \
    $(on_demo --search models/search/demo.toml --set {cvar_dro,eiil}.{warm_start=16,rate=0.01} \
      maple.{warm_start=8,rate=0.005,kept_share=0.5,outer_lr=0.05} ${diga:+diga.warm_start=1})
}
edits() {  # folder, training images: the demo edits those that an ERM run has listed
  train "$1" --size "$2" --methods erm --no-tables
  local list; for list in "$RESULTS/$FOLDER/$1"/erm/seed*/train.csv; do break; done
  [ -e "$list" ] || return 0  # the run is a job: give the same line again when it has ended
  EDITS=$DATA/edits_demo/${FOLDER}_$(cksum < "$list" | cut -d' ' -f1)
  run -m stable_diffusion.edit --model demo --prompts "$(prompts plain)" --list "$list" $SAMPLER \
    --images "$DATA"/demo/faces_*/img_align_celeba --out "$EDITS"
}
table3() {  # what the synthetic images are used for. Cost: 15 to 30, fine-tuned 10, AIM-Fair 13
  compare table3 erm synthetic_only data_supplementation data_repairing linear_probing \
    full_finetuning aim_fair --paper-table 3
}
# Which tensors are updated; the best of several on validation. Beside the paper's rows a random
# mask of AIM-Fair's size, and batch norm's statistics frozen. Cost: 10 to 13 each of 20 rows.
table4() {
  train table4 --paper-table 4 --methods best_random random_mask best_update best_freeze \
    aim_fair_cosine aim_fair aim_fair_frozen_batch_norm --baseline aim_fair
}
table5() {  # prompt sets, synthetic images only. Cost: 15 a row; a set's images, 3.5 EFLOP
  compare table5 synthetic_only_{plain,contextual_{25,50,head_poses_50}} --paper-table 5
}
# Is it the prompts or the mask? Plain or contextual by all tensors or the mask. Cost: 10 to 13.
prompts-by-mask() { compare prompts-by-mask {aim_fair,full_finetuning}{,_plain}; }
# The ratio of groups in the biased synthetic set. Cost: 13 a row.
table6() { compare table6 full_finetuning aim_fair_{4_6,3_7,2_8,1_9} --paper-table 6; }
# Synthetic images per real one; the demo has images for 0.8x. Cost: 8, 13, 18 and 23.
table7() { train table7 --paper-table 7 --methods $RATIOS --baseline $RATIO; }
table10() {  # the same; the paper's: SETTING=utkface
  train table10 --paper-table 10 --methods erm $RATIOS --baseline $RATIO
}
table8() {  # Table 3 with a ViT-S/32; the paper's EO is the mean of the two differences here
  train table8 --paper-table "8 (ViT-S/32)" --backbone vit_small_patch32 --top-k 0.887 --methods \
    erm synthetic_only data_supplementation full_finetuning lora ltgc aim_fair --baseline erm
}
table9() { compare table9 erm ltgc aim_fair --paper-table 9; }  # Cost: 15, 27, 13
# Male/Young by the images of Young/Male (demo: of Smiling/Male), the groups transposed. Cost: as 3.
table11() { compare table11 erm full_finetuning aim_fair --paper-table 11; }
# The minority groups' share, estimated by JTT's error set without group labels: the paper's 1:9.
bias-ratio() {
  train bias-ratio --methods jtt $(on_demo --set jtt.first_epochs=5 jtt.upweight=10)
  after utils.reporting.bias_ratio "$RESULTS/$FOLDER/bias-ratio/jtt"
}
# The fine-tuning's rate, chosen on validation. Cost: 13 each.
rates() { train rates --methods $BEST_RATE --baseline $RATE; }
# --- figures: drawn from saved runs; a missing run is made first ---------------------------------
figure1() {  # accuracy against EO and WST of every strategy
  table3; table4
  after utils.reporting "$RESULTS/$FOLDER/table3" --with "$RESULTS/$FOLDER/table4"
}
figure2() { compare figure2 full_finetuning freeze_{stem,layer{1,2,3,4},fc} aim_fair; }  # blocks
figure4() { grids --groups 1_1; }  # smiling men by prompt set; the paper: contextual ones vary more
figure5() { compare figure5 aim_fair_k{55,40,45,50,60}; }  # top-k; the paper's best is 55. Cost: 13
# t-SNE of the test images' features by (y, a), with how well they tell the protected attribute.
figure6() {
  train figure6 --methods erm data_supplementation aim_fair
  after models.tsne "$RESULTS/$FOLDER/figure6" --data-root "$DATA_ROOT" --store-dir "$DATA/store"
  after utils.reporting "$RESULTS/$FOLDER/figure6"
}
figure7() { grids; }  # the paper's: SETTING=celeba PROTECTED=Young, and SETTING=utkface
grids() {  # the images by group and prompt set, of the sets that there are
  run -m stable_diffusion.grids "$SYNTHETIC" --target "$TARGET" --protected "$PROTECTED" \
    --out "$RESULTS/$FOLDER/figures" "$@"
  [ ! -e "$RESULTS/$FOLDER/report.html" ] || run -m utils.reporting "$RESULTS/$FOLDER"
}
figure8() { train figure8 --methods aim_fair; }  # selected tensors; the paper: mostly early layers
gpu-check() {  # suite and benchmark
  run tests/gpu/check.py --out "$RESULTS/gpu-check.md" ${MORE[@]+"${MORE[@]}"}
}

. ./fairif.sh  # FairIF's tables and figures

EXPERIMENTS="demo judge celeba domain-gap longer rules tensor-effect prompts-by-mask table1 table2
  table3 table4 table5 table6 table7 table8 table9 table10 table11 bias-ratio rates figure1 figure2
  figure4 figure5 figure6 figure7 figure8 gpu-check fairif-table1 fairif-table2 fairif-table3
  fairif-table4 fairif-table4-blind fairif-theory fairif-table5 fairif-table6 fairif-table11
  fairif-figure2 fairif-strategies"
case " $(echo $EXPERIMENTS) " in *" $EXPERIMENT "*) ;;
  *) echo "error: no experiment '$EXPERIMENT'; there are:" $EXPERIMENTS >&2; exit 2 ;;
esac
case $EXPERIMENT-$# in *-0) ;; judge-* | figure4-* | figure7-*)
  echo "error: $EXPERIMENT takes no further flags: $*" >&2; exit 2 ;;
esac
case $SETTING-$EXPERIMENT in  # the first make none, or their own
  demo-bias-ratio | demo-domain-gap | demo-rules | demo-gpu-check | demo-fairif-*[0-9]) ;;
  demo-prompts-by-mask) images plain $PROMPT_SET ;;
  demo-table5 | demo-figure[47]) images plain contextual_25 contextual_50 $PROMPT_SET ;;
  demo-*) images $PROMPT_SET ;;
esac
"$EXPERIMENT"; exit  # on one line: this file may be edited while an experiment runs
