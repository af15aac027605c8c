#!/usr/bin/env bash
# A short run of the main job on made-up pictures, with the tiny model: bash tests/smoke.sh OUT
set -euo pipefail
export HF_HUB_OFFLINE=1 OMP_NUM_THREADS=2
out=$1
rm -rf "$out"
mkdir -p "$out"
python -c "
from pathlib import Path
from tests.pictures import write_elite, write_public
write_public(Path('$out/pictures'), 48)
write_elite(Path('$out/pictures'), 32)
"
for kind in public elite; do
    keepfit-clip shards build "$out/pictures/$kind.csv" --images "$out/pictures" --out "$out/shards/$kind" \
        --kind "$kind" --modality CFP
done
keepfit-clip train --model keepfit-v2-test --public-data "$out/shards/public" --elite-data "$out/shards/elite" \
    --val-data "$out/shards/public::$out/shards/elite" --batch-size 16 --epochs 2 --train-num-samples 160 --lr 1e-3 \
    --workers 1 --logs "$out" --name run 2>"$out/train.log" || { tail -30 "$out/train.log"; exit 1; }
keepfit-clip export "$out/run" --out "$out/model"
image=$(find "$out/pictures/public" -name '*.png' | sort | head -1)
keepfit-clip classify "$image" --model "$out/model" --categories "normal,glaucoma" --modality CFP
keepfit-clip caption "$image" --model "$out/model" --max-length 12
keepfit-clip evaluate "$out/pictures/public.csv" --images "$out/pictures" --model "$out/model" --modality CFP
