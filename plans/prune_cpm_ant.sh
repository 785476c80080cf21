#!/usr/bin/env bash
# BMCook's script on the GPUs of one machine or of several: its OPTS block is as it was, but for --batch-size, which
# counts the sequences of the global batch: 32 on each of 4 GPUs are 128.
#
#   one machine     bash prune_cpm_ant.sh
#   several         NODES=4 HEAD=first-machine bash prune_cpm_ant.sh      on each of them, in a folder that all share
#
# Stopped or broken off, the same command goes on from the last save, with as many GPUs as there are by then.
set -euo pipefail
GPUS=${GPUS:-4}
NODES=${NODES:-1}
HEAD=${HEAD:-localhost}

OPTS=""
OPTS+=" --model-config config/cpm-ant-1b.json"
OPTS+=" --load ckpt/1B/cpm_live_checkpoint_1B_pruned.pt"
OPTS+=" --save results"
OPTS+=" --save-name cpm-ant"
OPTS+=" --data-bin-path data/pretrain"
OPTS+=" --batch-size $((32 * GPUS * NODES))"
OPTS+=" --train-iters 3000"
OPTS+=" --save-iters 500"
OPTS+=" --max-length 512"
OPTS+=" --lr 0.1"
OPTS+=" --warmup-iters 2000"
OPTS+=" --lr-decay-style noam"
OPTS+=" --weight-decay 0.01"
OPTS+=" --clip-grad 1.0"
OPTS+=" --loss-scale 1048576"

# shellcheck disable=SC2086
torchrun --nnodes "$NODES" --nproc-per-node "$GPUS" \
  --rdzv-backend c10d --rdzv-endpoint "$HEAD:29500" --rdzv-id sprunec \
  -m sprunec run config/bmcook.json ${OPTS}
