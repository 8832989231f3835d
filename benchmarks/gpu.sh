#!/usr/bin/env bash
# Run everything that needs a GPU. benchmarks/gpu.py documents the parts and the requirements.
#
#   benchmarks/gpu.sh FOLDER [--data DATA] [--parts smoke,throughput,...] [--minutes 24] [--rehearse]
set -euo pipefail
missing=$(${PYTHON:-python3} -c '
import importlib.util, sys
print(*(name for name in sys.argv[1:] if not importlib.util.find_spec(name)))
' numpy pandas PIL psutil pydantic pydantic_core requests ruamel safetensors scipy torch tqdm)
if [ -n "$missing" ]; then
  echo "error: missing Python packages: $missing (PIL is pillow, ruamel is ruamel.yaml); put them on PYTHONPATH" >&2
  exit 1
fi
exec ${PYTHON:-python3} "$(dirname "$0")/gpu.py" "$@"
