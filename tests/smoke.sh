#!/usr/bin/env bash
# A short run of the main job through the command line: bash tests/smoke.sh OUT
set -euo pipefail
export HF_HUB_OFFLINE=1
out=$1
rm -rf "$out"
keepfit-clip demo --quick --out "$out"
image=$out/pictures/test/images/000000.png
keepfit-clip classify "$image" --model "$out/model" --categories "normal,glaucoma" --modality CFP
keepfit-clip caption "$image" --model "$out/model" --max-length 12
keepfit-clip evaluate "$out/pictures/test/retina.csv" --images "$out/pictures/test" --model "$out/model" \
    --classes "normal,glaucoma,cataract"
