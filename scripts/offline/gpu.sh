#!/usr/bin/env bash
# What is worth running on a GPU, in steps that end in time, and go on when they are called again.
#
#   bash scripts/offline/gpu.sh STEP...
#
# check    doctor and tests/test_cuda.py; meanwhile what `table2` will run is compiled, on random images (4 minutes)
# bench    benchmarks/gpu.py; BENCH=loss,trainer takes some of its parts (8 minutes for all)
# jobs     how many images a second 1, 2 and 3 runs at once train; table2 then takes the best number
# table2   CONFIG=tsla_cifar100 (ResNet-18 on CIFAR-100), METHODS="hard lsr tsla" (s = 180) for each of SEEDS="0 1 2";
#          when the time is up the runs write checkpoints, and the same command goes on. COLAM's Table 2 is
#          CONFIG=colam_cifar100 METHODS="hard lsr colam". OPTIONS="--train.cuda_graphs=on" go to `jobs` and `table2`
#
# Where each call takes along at most 60 MiB and lasts 10 minutes, the most valuable first, one right after the other:
#
#   .offline .offline-data-1    BENCH=loss,trainer,graphs bash scripts/offline/gpu.sh check bench
#   .offline-data-2             BENCH=loader,preact,means,options bash scripts/offline/gpu.sh bench
#   .offline-data-3             bash scripts/offline/gpu.sh jobs table2     and again, for as long as there is time
#
# LIMIT=530: seconds that all steps together may take. JOBS=3: runs of table2 at once. What is to be kept is in OUT
# (.offline-work/out without it): log.txt and results.tar.gz, which holds that of the calls before, too.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.." || exit 2
[ $# -gt 0 ] || { sed -n '2,20p' scripts/offline/gpu.sh; exit 2; }
work=$PWD/.offline-work
out=${OUT:-$work/out}
kept=$work/results
export PYTHON=${PYTHON:-python3} PYTHONUNBUFFERED=1
mkdir -p "$out" "$kept"
exec > >(tee -a "$out/log.txt") 2>&1

left() { echo $((${LIMIT:-530} - SECONDS)); }
say() { printf '\n== %s (%s s left)\n' "$*" "$(left)"; }

# A checkpoint of 90 MB goes into memory where there is plenty of it.
runs=$work/runs
[ "$(df --output=avail -m /dev/shm 2>/dev/null | tail -1)" -lt 16000 ] 2>/dev/null || runs=/dev/shm/fastlsr-runs

# keep NAME SECONDS COMMAND...: what the command prints is one of the results; it ends with the time that is left.
keep() {
    local name=$1 most=$2 code
    shift 2
    [ "$most" -lt $(($(left) - 10)) ] || most=$(($(left) - 10))
    [ "$most" -gt 10 ] || { say "no time for $name"; return 1; }
    say "$name"
    timeout -k 15 "$most" "$@" 2>&1 | tee "$kept/$name.txt"
    code=${PIPESTATUS[0]}
    echo "$name: exit code $code" | tee -a "$kept/$name.txt"
    return "$code"
}

collect() {
    local run name
    for run in "$runs"/"$config"/*/; do
        [ -f "$run/config.yaml" ] || continue
        name=$kept/$config/$(basename "$run")
        mkdir -p "$name"
        cp "$run"/{config.yaml,environment.json,metrics.jsonl,summary.json} "$name/" 2>/dev/null
    done
    tar -C "$kept" -czf "$out/results.tar.gz" .
}

config=${CONFIG:-tsla_cifar100}

# No function, since a signal is to reach Python itself. OPTIONS are words.
# shellcheck disable=SC2206
command=(env OMP_NUM_THREADS=2 "$PYTHON" -m fastlsr.train --cfg "configs/$config.yaml" --log.wandb=disabled
    --run.checkpoint_seconds=20 ${OPTIONS:-})

# 592 = 2 x 256 + 80 and 272 = 256 + 16 images: the four shapes of batches that CIFAR-100 has.
compile_ahead() {
    "$PYTHON" - <<'PY' || return
from pathlib import Path
import numpy as np
from fastlsr.data.prepare.encoding import Encoding
from fastlsr.data.prepare.writing import Samples, write_beton
random = np.random.default_rng(0)
for split, count in (("train", 592), ("test", 272)):
    images = random.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    path = Path(f".offline-work/warm/warm_{split}.beton")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    write_beton(Samples(images, np.arange(count) % 100), path, dataset="warm", split=split,
                classes=[str(number) for number in range(100)], encoding=Encoding(mode="raw"))
PY
    rm -rf "$work/warm/runs"
    "${command[@]}" --data.dataset=warm --data.dir="$work/warm" --run.dir="$work/warm/runs" --train.epochs=5 \
        --method.name=hard --data.workers=2
}

check() {
    compile_ahead >"$kept/compile_ahead.txt" 2>&1 &
    local ahead=$!
    keep doctor 120 "$PYTHON" -m fastlsr.doctor
    local code=0
    keep test_cuda 400 "$PYTHON" -m pytest tests/test_cuda.py -v -rA -p no:cacheprovider --durations=0 || code=$?
    say "waiting for what is compiled meanwhile"
    for _ in $(seq 150); do
        kill -0 $ahead 2>/dev/null && [ "$(left)" -gt 60 ] || break
        sleep 1
    done
    tail -5 "$kept/compile_ahead.txt"
    return $code
}

bench() {
    local options=()
    [ -z "${BENCH:-}" ] || options+=(--parts "$BENCH")
    keep "bench-${BENCH:-all}" 520 "$PYTHON" benchmarks/gpu.py ${options[@]+"${options[@]}"}
}

need_cifar() {
    [ -f data/cifar100_train.beton ] && [ -f data/cifar100_test.beton ] || { say "CIFAR-100 is not whole yet"; return 1; }
}

# Loader threads of each of so many runs at once.
share() { echo $(($(nproc) / $1 > 2 ? $(nproc) / $1 - 1 : 1)); }

jobs_step() {
    need_cifar || return
    local best=1 most=0 count number now
    local -a pids
    for count in 1 2 3; do
        [ "$(left)" -gt 90 ] || break
        rm -rf "$runs/jobs"
        pids=()
        for number in $(seq "$count"); do
            "${command[@]}" --method.name=hard --train.epochs=6 --train.seed="$number" --run.dir="$runs/jobs" \
                --run.name="$number" --data.workers="$(share "$count")" >"$work/jobs-$number.txt" 2>&1 &
            pids+=("$!")
        done
        wait "${pids[@]}"
        now=$("$PYTHON" - "$runs"/jobs/*/metrics.jsonl <<'PY'
import json, pathlib, sys
rows = [[json.loads(line) for line in pathlib.Path(name).read_text().splitlines()] for name in sys.argv[1:]]
print(round(sum(2 * 50_000 / sum(row["seconds"] for row in run[4:6]) for run in rows)))
PY
        ) || { tail -5 "$work/jobs-1.txt"; return 1; }
        echo "$count at once: $now images/s together" | tee -a "$kept/jobs.txt"
        [ "$now" -le $((most + most / 50)) ] || { best=$count; most=$now; }
    done
    echo "$best" >"$work/jobs"
}

table2() {
    need_cifar || return
    local jobs=${JOBS:-$(cat "$work/jobs" 2>/dev/null || echo 3)} seed method name pid todo=()
    local -A going=()
    mkdir -p "$runs/$config" "$work/done"
    for seed in ${SEEDS:-0 1 2}; do
        for method in ${METHODS:-hard lsr tsla}; do
            [ -f "$work/done/$config-$method-$seed" ] || todo+=("$method-$seed")
        done
    done
    say "table2: ${#todo[@]} runs are left, $jobs at once"
    while [ "$(left)" -gt 40 ] && [ $((${#todo[@]} + ${#going[@]})) -gt 0 ]; do
        while [ ${#going[@]} -lt "$jobs" ] && [ ${#todo[@]} -gt 0 ]; do
            name=${todo[0]}
            todo=("${todo[@]:1}")
            "${command[@]}" --method.name="${name%-*}" --train.seed="${name#*-}" --run.dir="$runs/$config" \
                --run.name="$name" --data.workers="$(share "$jobs")" >>"$kept/$config-$name.txt" 2>&1 &
            going[$!]=$name
        done
        sleep 1
        for pid in "${!going[@]}"; do
            kill -0 "$pid" 2>/dev/null && continue
            reap "$pid" "${going[$pid]}"
            unset "going[$pid]"
        done
    done
    [ ${#going[@]} = 0 ] || say "time is up: the runs write checkpoints"
    for pid in "${!going[@]}"; do kill -TERM "$pid" 2>/dev/null; done
    for pid in "${!going[@]}"; do reap "$pid" "${going[$pid]}"; done
    "$PYTHON" - "$runs"/"$config"/*/metrics.jsonl <<'PY' | tee "$kept/$config-now.txt"
import json, pathlib, statistics, sys
print("run       epochs  last top-1  best top-1  its top-5  images/s  s an epoch")
for path in map(pathlib.Path, sys.argv[1:]):
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    if rows:
        best = max(rows, key=lambda row: row["test/top1"])
        rate, taken = (statistics.median(row[key] for row in rows) for key in ("images_per_second", "seconds"))
        print(f"{path.parent.name:9} {len(rows):6} {rows[-1]['test/top1']:11.2f} {best['test/top1']:11.2f}"
              f" {best['test/top5']:10.2f} {rate:9.0f} {taken:11.2f}")
PY
}

# Notes that a run is done; one that failed is tried again by the next call.
reap() {
    local code=0
    wait "$1" || code=$?
    echo "$2: exit code $code"
    [ $code != 0 ] || { touch "$work/done/$config-$2"; rm -f "$runs/$config/$2"/checkpoint*.pt; }
}

trap collect EXIT
paths=$("$PYTHON" scripts/offline/unpack.py) || exit 2
eval "$paths"
cp .offline/commit.txt "$kept/"
{
    nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader
    "$PYTHON" -c 'import sys, torch; print("Python", sys.version.split()[0], "torch", torch.__version__)'
} 2>&1 | tee "$kept/machine.txt"
code=0
for step in "$@"; do
    case $step in
        check | bench | table2) $step || code=1 ;;
        jobs) jobs_step || code=1 ;;
        *) say "there is no step $step"; exit 2 ;;
    esac
done
exit $code
