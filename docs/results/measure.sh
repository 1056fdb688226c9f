#!/usr/bin/env bash
# Measures every bench-*.json of this folder again, on this machine: quiet, two threads, about a quarter of an hour.
set -euo pipefail
cd "$(dirname "$0")"
bench() {
    local file=$1
    shift
    sparsetune bench --threads 2 --device cpu --json "$@" >"$file.new"
    mv "$file.new" "$file"
}
bench bench-cpu-wrn28_4-f0.1.json --model wrn28_4 --fraction 0.1
bench bench-cpu-wrn28_4-f0.4.json --model wrn28_4 --fraction 0.4
bench bench-cpu-wrn28_4-norm.json --model wrn28_4 --filters 0 --no-head
bench bench-cpu-densenet100_12-f0.1.json --model densenet100_12 --fraction 0.1
bench bench-cpu-densenet100_12-f0.4.json --model densenet100_12 --fraction 0.4
bench bench-cpu-resnet50-f0.1.json --model resnet50 --fraction 0.1 --batch-size 16 --size 96
bench bench-cpu-vit_small-f0.1.json --model vit_small_patch16_224 --fraction 0.1 --batch-size 16 --size 224 --rounds 6
bench bench-cpu-wrn28_4-r4.json --model wrn28_4 --rank 4
bench bench-cpu-wrn28_4-r16.json --model wrn28_4 --rank 16
for model in tf_efficientnet_lite0 convnext_atto mobilenetv3_small_100; do
    bench "bench-cpu-$model-r4.json" --model "$model" --rank 4 --batch-size 16 --size 96 --rounds 12
done
bench bench-cpu-tf_efficientnet_lite0-f0.1.json --model tf_efficientnet_lite0 --fraction 0.1 --batch-size 16 --size 96 --rounds 12
