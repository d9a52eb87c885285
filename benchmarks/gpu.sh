#!/bin/sh
# One call on a machine with a GPU: the ladder within a budget of seconds, a profile of the fastest rung. See gpu/ladder.py.
#   benchmarks/gpu.sh --output $OUT  all that fits into 450 s, most valuable first; gpu_*.json
#   benchmarks/gpu.sh --rehearse     every line of it at tiny size on a CPU, to see that nothing is missing
set -e
cd "$(dirname "$0")/.."
python=.venv/bin/python
[ -x "$python" ] || python=python3
PYTHONPATH=.:benchmarks PYTHONUNBUFFERED=1 exec "$python" benchmarks/gpu/ladder.py "$@"
