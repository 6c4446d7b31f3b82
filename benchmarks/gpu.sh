#!/usr/bin/env bash
# All that needs a GPU, in one command of at most nine minutes without network: tests, models, speed.
# DEVICE=cpu rehearses it without one. Results: OUT (default runs/gpu), with summary.md as its one page.
set -uo pipefail
cd "$(dirname "$0")/.."
python="${PYTHON:-python3}"
if [ -z "${SKIP_INSTALL:-}" ]; then
  "$python" -m pip install --quiet --no-deps --no-build-isolation . || exit 1
fi
exec "$python" benchmarks/gpu.py --device "${DEVICE:-cuda}" --output "${OUT:-runs/gpu}" "$@"
