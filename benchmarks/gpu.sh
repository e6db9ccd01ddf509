#!/usr/bin/env bash
# Measure on a GPU for ten minutes: bash benchmarks/gpu.sh [folder for JSON files] [seconds in all]
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
peer=("$torch" -m benchmarks.torch_reference "--batch_size=$batch" "--steps=$steps" --repeats=3
    --compile_mode=reduce-overhead)
flag() { # name, flag, depth
    XLA_FLAGS="${XLA_FLAGS:-} $2" try "flag_$1_$3" 90 "${ours[@]}" "--depths=$3" --only=bare,whole
}

# 1. ResNet20, whose kernels are the shortest: beside plain flax, in smaller command buffers, and
# beside PyTorch.
try ours_20 150 "${ours[@]}" --depths=20 --only=plain,bare,whole
flag graphs_of_one --xla_gpu_graph_min_graph_size=1 20
try torch_20 90 "${peer[@]}" --depths=20 --modes=bare,best
try kernels_20 60 "$python" -m benchmarks.kernels "--batch_size=$batch"
# 2. The other depths.
try ours_56 150 "${ours[@]}" --depths=56 --only=plain,bare
try torch_56 120 "${peer[@]}" --depths=56 --modes=bare,best
try whole_56 150 "${ours[@]}" --depths=56 --only=whole
try ours_110 200 "${ours[@]}" --depths=110 --only=plain,bare
try whole_110 200 "${ours[@]}" --depths=110 --only=whole
# 3. Each product of each convolution: ours, the candidates' and PyTorch's.
try convolutions 90 "$python" -m benchmarks.convolutions "--batch_size=$batch"
try torch_convolutions 60 "${peer[@]}" --depths= --convolutions
# 4. More compiler flags, one at a time: convolutions in command buffers (from jax 0.12 on), no
# command buffers, and deterministic kernels.
flag convolutions_in_graphs --xla_gpu_enable_command_buffer=+CONVOLUTION 20
flag convolutions_in_graphs --xla_gpu_enable_command_buffer=+CONVOLUTION 56
flag no_graphs --xla_gpu_enable_command_buffer= 20
flag deterministic --xla_gpu_deterministic_ops=true 20
# 5. float32 activations, which compute in TF32.
try ours_56_float32 120 "${ours[@]}" --depths=56 --only=bare --dtype=float32
# 6. From the command to the first step, and PyTorch with a DataLoader.
try startup 90 "$python" -m benchmarks.startup --depth=56 "--batch_size=$batch" --steps=8 --repeats=1
try torch_usual 90 "${peer[@]}" --depths=56 --modes=usual
echo "== $SECONDS s in all" >&2
