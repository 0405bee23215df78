#!/usr/bin/env bash
# slurm_node.sh on two "nodes" of this machine, without Slurm and GPUs: two network namespaces with a cable between
# them, gloo over it. Two steps of the default recipe. Needs Linux, root and iproute2.
#   sudo PYTHON=.venv/bin/python docker/two_nodes.sh [ARGUMENT OF recipes/rlkd.py ...]
set -euo pipefail
cd "$(dirname "$0")/.."
name=rlkd$$
out=$(mktemp -d)
node() {
  local rank=$1
  shift
  ip netns exec "$name-$rank" env SLURM_NNODES=2 SLURM_NODEID="$rank" PER_NODE=1 MASTER_ADDR=10.77.0.1 \
    GLOO_SOCKET_IFNAME=cable HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 \
    bash docker/slurm_node.sh recipes/rlkd.py --ddp_backend gloo --output_dir "$out/run" "$@"
}
tidy() {
  if [ -n "${second:-}" ]; then kill "$second" 2>/dev/null || true; fi
  for rank in 0 1; do ip netns delete "$name-$rank" 2>/dev/null || true; done
  rm -rf "$out"
}
trap tidy EXIT
for rank in 0 1; do ip netns add "$name-$rank"; done
ip link add cable netns "$name-0" type veth peer name cable netns "$name-1"
for rank in 0 1; do
  ip -n "$name-$rank" address add "10.77.0.$((rank + 1))/24" dev cable
  ip -n "$name-$rank" link set cable up
  ip -n "$name-$rank" link set lo up
done
node 1 --max_steps 2 --eval_rows 4 "$@" >"$out/second.log" 2>&1 &
second=$!
node 0 --max_steps 2 --eval_rows 4 "$@" || { tail -n 30 "$out/second.log"; exit 1; }
wait "$second" || { tail -n 30 "$out/second.log"; exit 1; }
second=
test "$(wc -l <"$out/run/metrics.jsonl")" -eq 2
test -s "$out/run/rollouts/rank0.jsonl" && test -s "$out/run/rollouts/rank1.jsonl"
received=$(ip netns exec "$name-0" cat /sys/class/net/cable/statistics/rx_bytes 2>/dev/null || echo unknown)
echo "two nodes: 2 steps done, rollouts of both processes written, $received bytes received over the cable"
