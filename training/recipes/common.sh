# What the recipes share; sourced by each of them after it has set
#   NAME    of the run                      MODEL   config
#   STAGE1  flags of keepfit-clip pretrain-text    STAGE2  flags of keepfit-clip train
# and called with the words of the command line:
#   PUBLIC=shards/public ELITE=shards/elite CORPUS=reports.txt bash training/recipes/NAME.sh [flags of keepfit-clip train]
#   bash training/recipes/NAME.sh --smoke      the same programs and model on drawn retinas, two steps each, no hub
# OUT (runs) is where results go, TEXT_TOWER an existing tower instead of stage 1, PROCESSES (the GPUs that this machine
# shows, or 1) how many are started here; --batch-size is per process. Started again, a recipe goes on where it was.
set -euo pipefail

recipe() {
    if [[ "${1:-}" == "--smoke" ]]; then
        shift
        smoke_data
    fi
    : "${PUBLIC:?set PUBLIC to shards of public samples, or give --smoke}"
    : "${ELITE:?set ELITE to shards of elite samples, or give --smoke}"
    OUT=${OUT:-runs}
    TEXT_TOWER=${TEXT_TOWER:-$OUT/$NAME-text-tower}
    if [[ ! -e "$TEXT_TOWER" ]]; then
        # shellcheck disable=SC2086
        keepfit-clip pretrain-text --corpus ${CORPUS:-$ELITE} --out "$TEXT_TOWER" "${STAGE1[@]}"
    fi
    launch --model "$MODEL" --text-tower "$TEXT_TOWER" --public-data "$PUBLIC" --elite-data "$ELITE" \
        --logs "$OUT" --name "$NAME" --resume latest "${STAGE2[@]}" "$@"
    local model=$OUT/$NAME-model
    if [[ "${SLURM_NODEID:-0}" == 0 ]]; then
        # An export of an earlier checkpoint makes room for that of the last one.
        if [[ -n "$(find "$OUT/$NAME/checkpoints" -name '*.pt' -newer "$model" 2>/dev/null)" ]]; then rm -rf "$model"; fi
        if [[ ! -e "$model" ]]; then keepfit-clip export "$OUT/$NAME" --out "$model"; fi
    fi
}

# One process runs by itself, several on this machine under torchrun, and one torchrun on each node of a SLURM job.
launch() {
    if [[ -n "${HEAD_NODE:-}" ]]; then
        torchrun --nnodes "$SLURM_JOB_NUM_NODES" --nproc-per-node "$GPUS" --max-restarts 3 --rdzv-backend c10d \
            --rdzv-id "$SLURM_JOB_ID" --rdzv-endpoint "$HEAD_NODE:29500" -m keepfit_clip.training.main -- "$@"
        return
    fi
    local processes=${PROCESSES:-$(python3 -c 'import torch; print(torch.cuda.device_count())' || echo 1)}
    if ((processes <= 1)); then
        keepfit-clip train "$@"
    else
        torchrun --standalone --nproc-per-node "$processes" --max-restarts 3 -m keepfit_clip.training.main -- "$@"
    fi
}

# Drawn retinas, and settings small enough for two cores; the model stays what it is, its encoder of texts is MiniLM.
smoke_data() {
    export HF_HUB_OFFLINE=1 OMP_NUM_THREADS=2
    OUT=runs/recipes
    local drawn=$OUT/drawn
    if [[ ! -e $drawn ]]; then keepfit-clip draw --out "$drawn" --count 64 --size 224; fi
    PUBLIC=$OUT/public ELITE=$OUT/elite CORPUS=$OUT/captions.txt
    local kind
    for kind in public elite; do
        if [[ ! -e $OUT/$kind ]]; then
            keepfit-clip shards build "$drawn/$kind.csv" --images "$drawn" --out "$OUT/$kind" --kind "$kind"
        fi
    done
    cut -d, -f2- "$drawn/retina.csv" | tail -n +2 >"$CORPUS.partial"
    cmp -s "$CORPUS.partial" "$CORPUS" || mv "$CORPUS.partial" "$CORPUS"
    STAGE1+=(--init keepfit-v2-lite --max-steps 2 --batch-size 8 --precision fp32 --no-knowledge)
    STAGE2+=(--batch-size 4 --train-num-samples 8 --epochs 1 --warmup 1 --workers 1 --precision fp32)
}
