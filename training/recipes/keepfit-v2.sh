#!/usr/bin/env bash
# The papers' setting: ResNet-50 at 512 pixels, Bio_ClinicalBERT; KeepFIT v1's batch of 24 public and 24 elite samples.
# What V2 does not publish (loss weights, decoder) are our defaults. How it is called: common.sh.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
NAME=keepfit-v2 MODEL=keepfit-v2
STAGE1=(--init keepfit-v2 --epochs 10 --lr 1e-5 --max-length 112 --weight-decay 0.05)
STAGE2=(--pretrained-image --batch-size 48 --elite-fraction 0.5 --epochs 40 --lr 1e-4 --wd 1e-5 --grad-clip-norm 1
    --workers 8)
if [[ "${1:-}" == "--smoke" ]]; then STAGE2=("${STAGE2[@]:1}"); fi # ImageNet's weights come from the hub
recipe "$@"
