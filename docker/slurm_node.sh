#!/usr/bin/env bash
# The launcher of one node under Slurm: `srun` starts it once on each node of a job, with the same arguments.
#   slurm_node.sh SCRIPT [ARGUMENT ...]
# PER_NODE: processes per node, by default one per GPU that Slurm gave the node. PYTHON: the interpreter.
set -euo pipefail
per_node=${PER_NODE:-${SLURM_GPUS_ON_NODE:-1}}
exec "${PYTHON:-python}" -m accelerate.commands.launch --multi_gpu \
  --num_machines "$SLURM_NNODES" --machine_rank "$SLURM_NODEID" --num_processes "$((SLURM_NNODES * per_node))" \
  --main_process_ip "$MASTER_ADDR" --main_process_port "${MASTER_PORT:-29500}" \
  --mixed_precision no --dynamo_backend no "$@"
