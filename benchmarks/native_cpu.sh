#!/usr/bin/env bash
# Time the native kernels of a CPU, PyTorch, and XLA's kernels, each in a process of its own:
# bash benchmarks/native_cpu.sh FOLDER. Takes some 14 minutes on two cores. The PyTorch figures need
# torch, in the same environment or in that of $TORCH_PYTHON.
set -euo pipefail
cd "$(dirname "$0")/.."
export GLIBC_TUNABLES=glibc.malloc.hugetlb=1
out=${1:?give a folder for the JSON files}
python=${PYTHON:-python3} torch=${TORCH_PYTHON:-$python}
mkdir -p "$out"
for batch in 128 1024; do
    sizes=(--depths=20 "--batch_size=$batch" "--steps=$((batch == 128 ? 10 : 2))" --repeats=3)
    ours=("$python" -m benchmarks.throughput "${sizes[@]}" --only=bare,whole)
    "${ours[@]}" "--output=$out/native_$batch.json"
    "$torch" -m benchmarks.torch_reference "${sizes[@]}" "--output=$out/torch_$batch.json"
    RESNET_CIFAR_NATIVE=0 "${ours[@]}" "--output=$out/xla_$batch.json"
done
for depth in 56 110; do
    sizes=("--depths=$depth" --batch_size=128 "--steps=$((depth == 56 ? 4 : 2))" --repeats=3)
    "$python" -m benchmarks.throughput "${sizes[@]}" --only=bare,whole "--output=$out/native_$depth.json"
    "$torch" -m benchmarks.torch_reference "${sizes[@]}" "--output=$out/torch_$depth.json"
done
