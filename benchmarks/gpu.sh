#!/bin/sh
# One call on a machine with a GPU: parity, the ladder, a profile; results/gpu_*.json. See gpu/ladder.py.
#   benchmarks/gpu.sh                all of it
#   benchmarks/gpu.sh --rehearse     the same at tiny size on a CPU, to see that nothing is missing
set -e
cd "$(dirname "$0")/.."
python=.venv/bin/python
[ -x "$python" ] || python=python3
PYTHONPATH=.:benchmarks PYTHONUNBUFFERED=1 exec "$python" benchmarks/gpu/ladder.py "$@"
