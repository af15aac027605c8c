#!/usr/bin/env bash
# Two cores, no GPU, no hub: EfficientNet-Lite0 and MiniLM, both out of wheels (extra lite). How it is called: common.sh.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
NAME=laptop MODEL=keepfit-v2-lite
STAGE1=(--init keepfit-v2-lite --epochs 3)
STAGE2=(--pretrained-image --batch-size 32 --elite-fraction 0.375 --epochs 6 --lr 6e-4 --workers 1)
recipe "$@"
