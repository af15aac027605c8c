#!/usr/bin/env bash
# ViT-B/16 at 224 pixels: large batches on large GPUs, compiled, in bfloat16. How it is called: common.sh.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
NAME=vit-b-16 MODEL=keepfit-v2-vit-b-16
STAGE1=(--init keepfit-v2-vit-b-16 --epochs 10 --lr 1e-5)
STAGE2=(--pretrained-image --batch-size 256 --elite-fraction 0.25 --epochs 30 --lr 3e-4 --wd 0.05
    --freeze-text-steps 500 --save-most-recent --workers 8 --torchcompile)
if [[ "${1:-}" == "--smoke" ]]; then STAGE2=("${STAGE2[@]:1:${#STAGE2[@]}-2}"); fi # no hub, and compiling takes minutes
recipe "$@"
