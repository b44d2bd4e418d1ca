#!/usr/bin/env bash
# All figures of a GPU in at most eight minutes. Without a GPU: benchmarks/gpu.sh --tiny --device cpu
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHONPATH=$PWD exec timeout 480 "${PYTHON:-python3}" -m benchmarks.gpu "$@"
