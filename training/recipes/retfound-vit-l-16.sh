#!/usr/bin/env bash
# ViT-L/16 from a RETFound encoder (Nature 2023, doi:10.1038/s41586-023-06555-x), whose file has to be fetched by hand:
# RETFOUND=RETFound_cfp_weights.pth. How it is called otherwise: common.sh.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
NAME=retfound-vit-l-16 MODEL=keepfit-v2-vit-l-16
STAGE1=(--init keepfit-v2-vit-l-16 --epochs 10 --lr 1e-5)
STAGE2=(--batch-size 64 --elite-fraction 0.25 --epochs 20 --lr 5e-5 --wd 0.05 --grad-checkpointing
    --freeze-text-steps 500 --save-most-recent --workers 8)
if [[ "${1:-}" != "--smoke" ]]; then
    STAGE2+=(--image-tower "${RETFOUND:?set RETFOUND to the file of the encoder}")
fi
recipe "$@"
