#!/usr/bin/env bash
# From nothing to a policy for the simulated arm: demonstrations, data set, training, trials.
#
# Every stage keeps what it has done: run it again after an interruption and it goes on. Sizes can be changed from
# outside, for a quick look: EPISODES=60 STEPS=200 OUT=out/quick scripts/demo_policy.sh
set -euo pipefail
cd "$(dirname "$0")/.."

out="${OUT:-out/demo_policy}"
episodes="${EPISODES:-1800}"
steps="${STEPS:-6000}"

stage() { printf '\n== %s\n' "$*"; }

stage "1/4 demonstrations: $out/demos"
nora-collect --episodes "$episodes" --out "$out/demos" --image-size 168 --tasks-per-scene 3

stage "2/4 data set: $out/data"
nora-dataset build "$out/demos" --out "$out/data" --embodiment sim_widowx --image-size 84 --val-fraction 0.03

stage "3/4 training: $out/training (tensorboard --logdir $out/training)"
[[ -f $out/untrained/card.json ]] || python -m nora_training.sft.small --dataset "$out/data" --out "$out/untrained"
nora-sft "$out/data" --init "$out/untrained" --out "$out/training" --resume \
    --steps "$steps" --batch-size 64 --optimizer muon --lr 3e-3 --muon-lr 3e-3 --warmup 100 --clip 10 --ema 0.995 \
    --weight-decay 0.05 --keyframe-weight 5 --flow-draws 4 --shift 0.025 --jitter 0.1 --save-every 250 --val-every 500

stage "4/4 trials: $out/trials"
nora-trials demo_policy --out "$out/trials" --card \
    --folders demo "$out/training/checkpoint" tokens "$out/training/checkpoint" untrained "$out/untrained"

printf '\nThe policy is in %s; to ship it with the package:\n' "$out/training/checkpoint"
printf '  cp -r %s/. src/nora_bringup/checkpoints/sim_widowx/\n' "$out/training/checkpoint"
