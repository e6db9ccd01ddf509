#!/usr/bin/env bash
# Measure on a GPU for ten minutes: bash benchmarks/gpu.sh [folder for the JSON files] [seconds in all]
# The most valuable figures come first, and each command makes one whole file. The limit may cut off
# any of them: run the script again, and it measures what is missing.
# The PyTorch figures need torch, in the same environment or in that of $TORCH_PYTHON.
set -uo pipefail
cd "$(dirname "$0")/.."
out=${1:-results/gpu} limit=${2:-580}
python=${PYTHON:-python3} torch=${TORCH_PYTHON:-$python}
batch=${BATCH:-1024} steps=${STEPS:-48} # Smaller values rehearse the script on a CPU.
mkdir -p "$out"

try() { # file, seconds at most, command
    local file=$out/$1.json part=$out/$1.part left=$((limit - SECONDS)) most=$2
    shift 2
    [[ ! -e $file ]] && ((left > 10)) || return 0
    echo "== $SECONDS s: $*" >&2
    rm -f "$part"
    if timeout --kill-after=5 $((most < left ? most : left)) "$@" "--output=$part"; then
        mv "$part" "$file"
    else
        echo "== cut off, or failed with $?: $*" >&2
    fi
}
ours=("$python" -m benchmarks.throughput "--batch_size=$batch" "--steps=$steps" --repeats=3)
peer=("$torch" -m benchmarks.torch_reference "--batch_size=$batch" "--steps=$steps")

# 1. ResNet56: the step and the whole program, beside PyTorch and plain flax.
try bare_56 120 "${ours[@]}" --depths=56 --only=bare
try whole_56 150 "${ours[@]}" --depths=56 --only=whole
try torch_bare_56 90 "${peer[@]}" --depths=56 --repeats=3 --modes=bare --compile_mode=reduce-overhead
try plain_56 120 "${ours[@]}" --depths=56 --only=plain
try torch_best_56 90 "${peer[@]}" --depths=56 --repeats=3 --modes=best --compile_mode=reduce-overhead
# 2. Each product of each convolution: ours, the candidates' and PyTorch's.
try convolutions 90 "$python" -m benchmarks.convolutions "--batch_size=$batch"
try torch_convolutions 60 "${peer[@]}" --depths= --convolutions
# 3. The other depths.
for depth in 20 110; do
    try "bare_$depth" 120 "${ours[@]}" "--depths=$depth" --only=bare
    try "whole_$depth" 150 "${ours[@]}" "--depths=$depth" --only=whole
done
# 4. Compiler flags, one at a time, on the step: convolutions in command buffers, smaller command
# buffers, none, and deterministic kernels.
flag() { # name, flag
    XLA_FLAGS="${XLA_FLAGS:-} $2" try "flag_$1" 90 "${ours[@]}" --depths=56 --only=bare
}
flag convolutions_in_graphs --xla_gpu_enable_command_buffer=+CONVOLUTION
flag graphs_of_one --xla_gpu_graph_min_graph_size=1
flag no_graphs --xla_gpu_enable_command_buffer=
flag deterministic --xla_gpu_deterministic_ops=true
# 5. float32 activations, which compute in TF32.
try bare_56_float32 120 "${ours[@]}" --depths=56 --only=bare --dtype=float32
# 6. From the command to the first step, and PyTorch with a DataLoader.
try startup 90 "$python" -m benchmarks.startup --depth=56 "--batch_size=$batch" --steps=8 --repeats=1
try torch_usual 90 "${peer[@]}" --depths=56 --repeats=1 --modes=usual
echo "== $SECONDS s in all" >&2
