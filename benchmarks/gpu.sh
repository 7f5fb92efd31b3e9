#!/bin/bash
# What one GPU of 80 GB gives, in one go: `bash benchmarks/gpu.sh PART ...` at the repository's root, with any of attention,
# vae, 1.3b, 14b, two14b, growth, profile, start, options, endless, tests, key, key14b, train, regions. Without arguments:
# attention, vae, 1.3b, 14b, growth, some eighteen minutes. Each part has a time limit of its own and none stops another.
# Results lie in the folder $OUT as they come: what each command said, and its JSON.
export OMP_WAIT_POLICY=passive PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True
export TORCHINDUCTOR_CACHE_DIR=${TORCHINDUCTOR_CACHE_DIR:-/tmp/inductor}
OUT=${OUT:-/tmp/out}; mkdir -p "$OUT"; PY=${PY:-python3}
export CHUNKCAST_RESULTS=$OUT
parts=${*:-attention vae 1.3b 14b growth}
run() { # name, seconds, command; its JSON is gpu-NAME
  local name=$1 limit=$2; shift 2
  echo "== $name: $*"; local begun=$SECONDS
  timeout -k 5 "$limit" "$@" >"$OUT/$name.txt" 2>&1; echo "== $name: rc $?, $((SECONDS - begun)) s"
}
said() { grep -v '^{"' "$OUT/$1.txt" | cut -c 1-"${2:-400}" | tail -"${3:-40}"; }
throughput() { # name, seconds, options
  local name=$1 limit=$2; shift 2
  run "$name" "$limit" "$PY" -m benchmarks.throughput --weights random --save "gpu-$name" "$@"
  grep -E "^ceilings|^\{'way|^\{'first|failed|s for this way|Error" "$OUT/$name.txt" | cut -c 1-700
}
for part in $parts; do case $part in
attention)
  run attention 40 "$PY" -m benchmarks.attention --preset lingbot-world-v2-14b --save gpu-attention; said attention 900 ;;
vae)
  run vae 165 "$PY" -m benchmarks.vae --chunks 5 --ways "exact,bf16,fp16,rows,rows-fp16,rows graph" --save gpu-vae; said vae 1200 ;;
1.3b)
  throughput 1.3b 600 --preset lingbot-world-v2-1.3b --slots 1,2 --chunks 10 --frames 81 --way "schedule=turns vae=rows" \
    --way "schedule=batch vae=rows" --way "schedule=turns vae=rows context=reuse" \
    --way "schedule=turns vae=rows attention=fp8 graphs=yes" \
    --way "schedule=turns vae=rows attention=fp8 context=reuse graphs=yes" \
    --way "schedule=turns vae=rows precision=fp8 attention=fp8 graphs=yes" \
    --way "schedule=batch vae=rows precision=fp8 attention=fp8 graphs=yes" \
    --way "schedule=batch vae=rows precision=fp8 attention=fp8 context=reuse graphs=yes" ;;
14b)
  throughput 14b 600 --preset lingbot-world-v2-14b --slots 1 --chunks 10 --frames 81 --way "schedule=turns vae=rows" \
    --way "schedule=turns vae=rows precision=fp8" --way "schedule=turns vae=rows precision=fp8 attention=fp8" \
    --way "schedule=turns vae=rows precision=fp8 attention=fp8 context=reuse" ;;
two14b)
  throughput two14b 300 --preset lingbot-world-v2-14b --slots 1,2 --chunks 3 --frames 9 \
    --way "schedule=turns vae=rows precision=fp8 cache=fp8" --way "schedule=turns vae=rows precision=fp8 attention=fp8" \
    --way "schedule=batch vae=rows precision=fp8 attention=fp8" ;;
growth)
  run growth 400 "$PY" -m benchmarks.growth --preset lingbot-world-v2-1.3b --weights random --vae-precision rows --save gpu-growth
  said growth 300 ;;
profile) # where a step's time goes: as it is, as the transformer is without fuse, and all in FP8
  for preset in 1.3b 14b; do
    throughput "profile-$preset" 300 --preset "lingbot-world-v2-$preset" --slots 1 --chunks 3 --frames 9 \
      --way "schedule=turns vae=rows" --way "schedule=turns vae=rows eager=yes" \
      --way "schedule=turns vae=rows precision=fp8 attention=fp8" --digest "profile-$preset"
  done ;;
start)
  run start 200 "$PY" -m benchmarks.start --preset lingbot-world-v2-1.3b --weights random --save gpu-start; said start ;;
options)
  throughput options 200 --preset lingbot-world-v2-1.3b --slots 1,2 --chunks 5 --frames 29 --way "schedule=turns vae=fp16" \
    --way "schedule=turns vae=fp16 graphs=yes" --way "schedule=batch vae=fp16" --way "schedule=batch vae=fp16 graphs=yes" \
    --way "schedule=turns vae=fp16 context=reuse graphs=yes" ;;
endless)
  run endless 290 "$PY" -m benchmarks.endless --preset lingbot-world-v2-1.3b --weights random --vae-precision fp16 --chunks 300 \
    --save gpu-endless
  said endless 300 ;;
tests)
  run tests 190 "$PY" -m pytest -q -p no:cacheprovider -m gpu tests/test_fused.py tests/test_linear.py tests/test_attention.py \
    tests/test_packed.py tests/test_vae_rows.py tests/test_fp8.py tests/test_fp8_attention.py -k "not float32"
  tail -4 "$OUT/tests.txt"
  run interpreted 90 "$PY" -m pytest -q -p no:cacheprovider -m "not gpu" -k kernel tests/test_conv.py tests/test_packed.py \
    tests/test_vae_rows.py tests/test_fp8.py tests/test_fp8_attention.py tests/test_rows.py
  tail -4 "$OUT/interpreted.txt"
  run graphs 400 "$PY" -m pytest -q -p no:cacheprovider tests/test_gpu.py -k "graphs or (True and longlive)"
  tail -8 "$OUT/graphs.txt" ;;
key) # two short lengths of a chunk, and the preset's own all in FP8; each engine takes one or two minutes to get warm
  for latents in 1 2; do
    run "key$latents" 330 "$PY" -m benchmarks.key_to_frame --preset lingbot-world-v2-1.3b --vae-precision rows --slots 1,2 \
      --schedule turns,batch --chunk-latents $latents --graphs --seconds 25 --save "gpu-key$latents"
    said "key$latents" 300 8
  done
  run keyfp8 330 "$PY" -m benchmarks.key_to_frame --preset lingbot-world-v2-1.3b --vae-precision rows --slots 1,2 \
    --schedule turns --precision fp8 --attention fp8 --graphs --seconds 25 --save gpu-keyfp8
  said keyfp8 300 8 ;;
train) # what a step of the tiny world's training costs
  run train 150 "$PY" -m benchmarks.train_step --save gpu-train
  said train 120 110 ;;
key14b) # what fits two viewers on one GPU
  run key14b 480 "$PY" -m benchmarks.key_to_frame --preset lingbot-world-v2-14b --precision fp8 --attention fp8 \
    --vae-precision rows --slots 1,2 --schedule turns,batch --seconds 25 --save gpu-key14b
  said key14b 300 8 ;;
regions)
  run regions 150 "$PY" -m benchmarks.regions --preset lingbot-world-v2-14b
  grep -E "^\{'|copy moves" "$OUT/regions.txt" ;;
*) echo "no part $part" ;;
esac; done
ls "$OUT"
