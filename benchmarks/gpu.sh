#!/bin/bash
# What the fused transformer brings on one GPU of 80 GB: `bash benchmarks/gpu.sh [tests|regions|14b|1.3b ...]` at the repository's root, all
# by default. Tables go to stdout, what each command said and the digests to the folder $OUT.
export OMP_WAIT_POLICY=passive PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True
export TORCHINDUCTOR_CACHE_DIR=${TORCHINDUCTOR_CACHE_DIR:-/tmp/inductor}
OUT=${OUT:-/tmp/out}; mkdir -p "$OUT"; PY=${PY:-python3}
parts=${*:-tests regions 14b 1.3b}
run() { # name, seconds, command
  local name=$1 limit=$2; shift 2
  echo "== $name: $*"; local begun=$SECONDS
  timeout "$limit" "$@" >"$OUT/$name.txt" 2>&1; echo "== $name: rc $?, $((SECONDS - begun)) s"
}
table() { grep -E -A20 '^way  ' "$OUT/$1.txt" | grep -v '^{'; grep -E 'of memory|Error' "$OUT/$1.txt" | tail -3; }
for part in $parts; do case $part in
tests)
  run tests 150 $PY -m pytest -q -p no:cacheprovider -m gpu tests/test_fused.py tests/test_linear.py tests/test_attention.py -k "not float32"
  tail -4 "$OUT/tests.txt" ;;
regions)
  run regions 150 $PY -m benchmarks.regions --preset lingbot-world-v2-14b
  grep -E "^\{'|copy moves" "$OUT/regions.txt" ;;
14b)
  run 14b 280 $PY -m benchmarks.throughput --preset lingbot-world-v2-14b --weights random --slots 1 --schedule turns --eager --precision bf16,fp8 --chunks 4 --frames 21 --digest fastdit-14b
  table 14b ;;
1.3b)
  run 1.3b 150 $PY -m benchmarks.throughput --preset lingbot-world-v2-1.3b --weights random --slots 1,2 --schedule turns --eager --precision bf16 --chunks 5 --frames 29
  table 1.3b
  run 1.3b-two 150 $PY -m benchmarks.throughput --preset lingbot-world-v2-1.3b --weights random --slots 2 --schedule turns,batch --precision bf16,fp8 --chunks 5 --frames 29
  table 1.3b-two ;;
esac; done
cp -r benchmarks/results/fastdit-* "$OUT"/ 2>/dev/null
for part in $parts; do [ "$part" = 14b ] && { echo "== tables again"; table 14b; }; [ "$part" = 1.3b ] && { table 1.3b; table 1.3b-two; }; done; true
