# FairIF's experiments, a part of runner.sh, which names them: bash runner.sh fairif-table4
# shellcheck shell=bash

# Table 4 on the committed Adult, German and COMPAS files, offline, on one core. The paper's FairIF,
# Acc / AOD / EOD: Adult 68.97 / .170 / .265, German 74.68 / .017 / .024, COMPAS 67.53 / .156 / .218;
# summary.md prints them beside ours, with the control of shuffled weights.
fairif-table4() {
  for model in ${MODELS:-logistic mlp}; do
    $PYTHON -m models.fairif.tables --model $model --splits ${SPLITS:-20} --results "$RESULTS" "$@"
  done
}
# Tables 1 (MLP), 2 (CNN) and 3 (LeNet) on CI-MNIST, the paper's 500 epochs; add --epochs 25 for an
# hour on one core (MLP, three seeds). The paper's Original and FairIF under group distribution shift,
# Acc / AOD / EOD: MLP 98.19 / .065 / .056 and 98.49 / .053 / .031, CNN 98.81 / .043 / .030 and
# 98.94 / .004 / .003, LeNet 99.17 / .026 / .018 and 99.42 / .018 / .013.
fairif-table1() { digits 1 "$@"; }
fairif-table2() { digits 2 "$@"; }
fairif-table3() { digits 3 "$@"; }
digits() {
  $PYTHON -m models.fairif.tables --table $1 --mnist "$MNIST" --seeds ${SPLITS:-5} \
    --results "$RESULTS" "${@:2}"
}

# Tables 5, 6, 11 and Figure 2, on Smiling/Male of the demo's faces (the default), with
# SETTING=celeba on Blond_Hair/Male, with SETTING=fairface on Male/White: all images, a ResNet whose
# last hidden layer is 128, 50 epochs at 2e-4 without a schedule, lambda 0.1. The paper states
# neither optimiser nor batch: here they are SGD with momentum 0.9 and 128, as for AIM-Fair.
FAIRIF_NET="--image-size 224 --pretrain-lr 0.0002 --pretrain-epochs 50 --milestone 50"
# On the demo the influence moves layer4 and fc alone, with 12 products over 300 images: no more than
# an ERM run. With the damping 0.1, 10 steps left a residual of 0.001 (0.01: 14 left 0.03; over all
# tensors: 11 left 2); 500 images and 30 steps over all tensors cost five runs. Chosen by that alone.
DEMO_FAIRIF="last_tensors=17 damping=0.1 curvature_images=300 cg_steps=12"
fairif_choose() {  # FOLDER, SEEDS and FLAGS of the FairIF tables
  case $SETTING in
    demo) choose; return ;;
    celeba) TARGET=${TARGET:-Blond_Hair} ;;
    fairface) ;;
    *) echo "error: SETTING=$SETTING is none of demo, celeba and fairface" >&2; exit 2 ;;
  esac
  TARGET=${TARGET:-Male} PROTECTED=${PROTECTED:-$(in_fairface White Male)}
  local root; root=$(in_fairface "$FAIRFACE" "$CELEBA")
  FOLDER=${SETTING}_${TARGET}_$PROTECTED SEEDS=${SEEDS:-100 200 300}
  FLAGS=(--dataset $SETTING --data-root "$root" --size all $FAIRIF_NET --pretrained none
    --backbone resnet18_h128 --target $TARGET --protected $PROTECTED --results "$RESULTS"
    --store-dir "$DATA/store")
}
in_fairface() { if [ $SETTING = fairface ]; then echo "$1"; else echo "$2"; fi; }
weighted() {  # folder, table, a method that weighs by influence, its flags; with --set last
  local own=() more=("${@:4}")
  read -ra own <<< "$(on_demo "$DEMO_FAIRIF" "")"
  [[ " ${more[*]} " == *" --set "* ]] || [ ${#own[@]} -eq 0 ] || more+=(--set)
  rows "$1" "$2" --methods "$3" "${more[@]}" "${own[@]}"
}
# The paper's Acc / AD / AOD / EOD on CelebA: Original 95.41/4.54/.2485*/.4975, CFair
# 95.11/4.23/.1954/.3520, DOMIND 94.88/4.18/.1864/.3475, ARL 95.08/4.31/.2185/.4108, FairSMOTE
# 95.26/4.42/.2256/.3872, FairIF 95.37/3.81/.1220*/.3145; on FairFace: Original
# 86.68/7.23/.0721/.0610, FairIF 86.63/4.14/.0048*/.0105. * is impossible: AOD < EOD / 2.
# The paper leaves Influence out on images.
fairif-table5() {
  rows fairif-table5 fairif-5 --methods erm cfair domind arl fairsmote
  rows fairif-table5 "" --methods influence
  weighted fairif-table5 fairif-5 fairif
  weighted fairif-table5 "" fairif_shuffled
  compared fairif-table5
}
# Change by FairIF from ImageNet weights, Acc / AD / AOD / EOD in %: ResNet-18 on CelebA
# +.07/-23.7/-37.1/-23.5, on FairFace +.40/-35.8/-48.8/-66.9; summary.md prints the other four. On
# the demo: ResNet-18 from random weights (NETWORKS and PRETRAINED choose others).
fairif-table6() {
  local networks start
  networks=${NETWORKS:-$(on_demo resnet18 "resnet18 resnet34 resnet50")}
  start=${PRETRAINED:-$(on_demo none imagenet)}
  for network in $networks; do
    local flags=(--backbone $network$(on_demo "" _h128) --pretrained $start)
    rows fairif-table6 "" --methods erm "${flags[@]}" --name erm_$network
    weighted fairif-table6 "" fairif "${flags[@]}" --name fairif_$network
    weighted fairif-table6 "" fairif_shuffled "${flags[@]}" --name fairif_shuffled_$network
  done
}
# Shares of the validation images whose group labels FairIF uses; the paper's AOD on CelebA: Original
# .2485*, 100% .1220*, 50% .1491*, 25% .1873*, 10% .2219*; on FairFace .0721, .0048*, .0073*, .0089,
# .0149. The epoch is chosen on all validation images, without group labels.
fairif-table11() {
  rows fairif-table11 fairif-11 --methods erm
  for share in 1.0 0.5 0.25 0.1; do
    local percent; percent=$(awk "BEGIN { print 100 * $share }")
    local row=(--paper-row "$percent%")
    [ $SETTING != demo ] && [ "${PAPER:-}" != no ] || row=()
    weighted fairif-table11 fairif-11 fairif --name fairif_$percent "${row[@]}" \
      --set validation_share=$share
  done
  weighted fairif-table11 "" fairif_shuffled
  compared fairif-table11
}
# The images weighted most and least. The paper: blond men up and blond women down on CelebA, dark
# skin up and light skin down on FairFace.
fairif-figure2() { weighted fairif-figure2 "" fairif; }
# AIM-Fair's strategies and FairIF in one table, in AIM-Fair's settings (demo, CelebA, UTKFace)
fairif-strategies() {
  rows fairif-strategies 3 --methods erm full_finetuning aim_fair
  weighted fairif-strategies "" fairif
  weighted fairif-strategies "" fairif_shuffled
  compared fairif-strategies
}
