#!/usr/bin/env bash
# Runs all tiers, or what pytest is given, as on other CPUs and beside two busy processes: tests/any_cpu.sh [FILE ...]
#
# Kernels for other instruction sets add up in another order, so each run rounds otherwise. A test that passes under
# all of them has a tolerance that does not come from one machine.
set -uo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
if (($#)); then
    tests=("$PYTHON" -m pytest -n 2 --dist loadfile "$@")
else
    tests=("$PYTHON" tests/tiers.py)
fi
failed=0
summary=""

run() {
    local name=$1 outcome=passed
    shift
    printf '\n=== %s\n' "$name"
    "$@" "${tests[@]}" </dev/null || { outcome=FAILED failed=1; }
    summary+="$name: $outcome"$'\n'
}

# What the CPU, ATen, oneDNN and MKL call the same instruction set.
while read -r flag aten onednn mkl; do
    if grep -qw "$flag" /proc/cpuinfo; then
        run "$aten" env ATEN_CPU_CAPABILITY="$aten" ONEDNN_MAX_CPU_ISA="$onednn" MKL_CBWR="$mkl"
    else
        summary+="$aten: not on this CPU"$'\n'
    fi
done <<END
sse4_1 default SSE41 COMPATIBLE
avx2 avx2 AVX2 AVX2
avx512vl avx512 AVX512_CORE AVX512
END

for _ in 1 2; do
    while :; do :; done &
done
trap 'kill $(jobs -p)' EXIT
run "beside two busy processes" env

printf '\n%s' "$summary"
exit "$failed"
