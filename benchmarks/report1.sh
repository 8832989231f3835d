#!/usr/bin/env bash
# Report 1 whole, with the time of each step: both losses at its own settings, trained and evaluated. It needs no
# DVC and no Prefect, so that it runs on a GPU machine that has neither; benchmarks/train.py says what it does need.
#
#   benchmarks/report1.sh DATA FOLDER [KEY=VALUE...]
#
# DATA is what data.source takes; all is written under FOLDER; KEY=VALUE changes params.yaml, for example
# epochs=2 to try it.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
data=$1 folder=$2
shift 2
changes=("data.source=$data" data.sha256=null "$@")
mkdir -p "$folder"
cp "$root/params.yaml" "$folder"
cd "$folder"
export PYTHONPATH=$root

step() {
  local start=$SECONDS
  python -m "$@"
  echo "--- $1: $((SECONDS - start)) s"
}

python -m tasks.params "${changes[@]/#/--set=}"
step tasks.plan params.yaml artifacts/plans
step tasks.download params.yaml data/raw
step tasks.preprocess params.yaml data/raw data/packed
start=$SECONDS
for name in report1_bce report1_bce_iou; do
  step tasks.train "artifacts/plans/$name.json" data/packed "artifacts/train/$name"
  step tasks.evaluate "artifacts/plans/$name.json" "artifacts/plans/$name.prediction.json" \
    "artifacts/train/$name" data/packed data/raw "artifacts/evaluation/$name"
done
echo "--- report 1 whole: $((SECONDS - start)) s"
cat artifacts/evaluation/*/metrics.json
