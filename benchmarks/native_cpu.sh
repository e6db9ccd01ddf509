#!/usr/bin/env bash
# Time the native kernels of a CPU, XLA's kernels, and PyTorch, each in a process of its own:
# bash benchmarks/native_cpu.sh FOLDER, an empty one. Takes some 45 minutes on two cores. The PyTorch
# figures need torch, in the same environment or in that of $TORCH_PYTHON.
set -euo pipefail
cd "$(dirname "$0")/.."
export GLIBC_TUNABLES=glibc.malloc.hugetlb=1
out=${1:?give a folder for the JSON files}
python=${PYTHON:-python3} torch=${TORCH_PYTHON:-$python}
mkdir -p "$out"

"${CXX:-c++}" -std=c++20 -O2 -march=x86-64-v3 -pthread benchmarks/fma_peak.cc -o "$out/fma_peak"
"$out/fma_peak" >"$out/fma_peak.json"
rm "$out/fma_peak"

# time_to WHAT DEPTH BATCH DTYPE COMMAND...: adds a row to WHAT_DEPTH_BATCH_DTYPE.json.
time_to() {
    local file=$out/$1_$2_$3_$4.json
    "${@:5}" "--depths=$2" "--batch_size=$3" "--dtype=$4" "--output=$out/newest.json"
    "$python" - "$file" "$out/newest.json" <<'END'
import json, pathlib, sys
file, newest = map(pathlib.Path, sys.argv[1:])
result = json.loads(newest.read_text())
rows = json.loads(file.read_text())["rows"] if file.exists() else []
file.write_text(json.dumps(result | {"rows": rows + result["rows"]}, indent=2) + "\n")
END
    rm "$out/newest.json"
}
ours=("$python" -m benchmarks.throughput --only=bare,whole)
peer=("$torch" -m benchmarks.torch_reference)

# DEPTH BATCH, how many steps are timed at once, ours and PyTorch's, and how often.
measure() {
    time_to native "$1" "$2" float32 "${ours[@]}" "--steps=$3" "--repeats=$5"
    RESNET_CIFAR_NATIVE=0 time_to xla "$1" "$2" float32 "${ours[@]}" "--steps=$4" "--repeats=$5"
    time_to eager "$1" "$2" float32 "${peer[@]}" "--steps=$4" "--repeats=$5"
    time_to compiled "$1" "$2" float32 "${peer[@]}" "--steps=$4" "--repeats=$5" \
        --compile_mode=default --modes=bare,best
}
measure 20 128 30 10 5
time_to native 20 128 bfloat16 "${ours[@]}" --steps=30 --repeats=5
for _ in 1 2 3; do measure 20 1024 4 2 2; done
time_to native 20 1024 bfloat16 "${ours[@]}" --steps=4 --repeats=5
measure 56 128 10 4 3
measure 110 128 5 2 3
# Without bfloat16 instructions a step of PyTorch takes seconds.
time_to eager 20 128 bfloat16 "${peer[@]}" --repeats=2 --steps=1 --modes=bare,best
time_to eager 20 1024 bfloat16 "${peer[@]}" --repeats=1 --steps=1 --modes=bare
