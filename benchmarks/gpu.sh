#!/usr/bin/env bash
# Ten minutes on a GPU, in order of value: bash benchmarks/gpu.sh [folder for the JSON files] [seconds in all]
# Whatever does not fit into the time that is left is cut off; each command writes its file after each depth or layer.
# The peer needs torch, in the same environment or in that of $TORCH_PYTHON.
set -uo pipefail
cd "$(dirname "$0")/.."
out=${1:-results/gpu} limit=${2:-580}
python=${PYTHON:-python3} torch=${TORCH_PYTHON:-$python}
batch=${BATCH:-1024} steps=${STEPS:-48} # Smaller ones are for a rehearsal elsewhere.
mkdir -p "$out"

try() { # seconds at most, and the command
    local left=$((limit - SECONDS)) most=$1
    shift
    ((left > 10)) || return 0
    echo "== $SECONDS s: $*" >&2
    timeout --kill-after=5 $((most < left ? most : left)) "$@" || echo "== cut off, or failed with $?: $*" >&2
}
ours=("$python" -m benchmarks.throughput "--batch_size=$batch" "--steps=$steps")
peer=("$torch" -m benchmarks.torch_reference "--batch_size=$batch" "--steps=$steps")

# 1. The main figure: plain, bare, epoch, whole, with evaluation, for ResNet56.
try 240 "${ours[@]}" --depths=56 --repeats=3 --output="$out/throughput_56.json"
# 2. The peer, in the same minute.
try 150 "${peer[@]}" --depths=56 --repeats=3 --modes=bare,best --compile_mode=reduce-overhead \
    --output="$out/torch_56.json"
# 3. Where the time is: each product of each convolution, ours, the candidates and the peer's.
try 90 "$python" -m benchmarks.convolutions --batch_size="$batch" --output="$out/convolutions.json"
try 60 "${peer[@]}" --depths= --convolutions --output="$out/torch_convolutions.json"
# 4. The other depths, the whole program and the bare step only.
try 150 "${ours[@]}" --depths=20,110 --repeats=3 --only=bare,whole --output="$out/throughput.json"
# 5. From the command to the first step.
try 90 "$python" -m benchmarks.startup --depth=56 --batch_size="$batch" --steps=8 --repeats=1 --output="$out/startup.json"
# 6. Flags that may help, one at a time, on the bare step.
for flag in --xla_gpu_graph_min_graph_size=1 --xla_gpu_enable_command_buffer= --xla_gpu_deterministic_ops=true; do
    XLA_FLAGS=$flag try 60 "${ours[@]}" --depths=56 --repeats=3 --only=bare --output="$out/flag_${flag//[^a-z0-9]/_}.json"
done
# 7. The usual trainer.
try 90 "${peer[@]}" --depths=56 --repeats=1 --modes=usual --output="$out/torch_usual.json"
echo "== $SECONDS s in all" >&2
