#!/bin/bash
# Exports a sample log to LeRobotDataset v3.0 and loads it with the lerobot package, then the other
# way round: a dataset that lerobot records is imported. Both are compared value by value. lerobot
# wants an older PyTorch, so it gets an environment of its own in FOLDER (several gigabytes, as its
# PyTorch brings CUDA), which is kept for the next time.
#   usage: check_lerobot.sh FOLDER [PYTHON]   PYTHON has the project's dependencies (.venv's)
set -euo pipefail

[ $# -ge 1 ] || { echo "usage: check_lerobot.sh FOLDER [PYTHON]" >&2; exit 2; }
repo="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
mkdir -p "$1"
folder="$(cd "$1" && pwd)"
python="${2:-$repo/.venv/bin/python}"
lerobot="$folder/env/bin/python"
check="$repo/scripts/check_lerobot.py"
[ -x "$(command -v "$python")" ] || { echo "no Python at $python; run 'make setup' first" >&2; exit 1; }

if ! "$lerobot" -c "import lerobot" 2>/dev/null; then
    echo "lerobot: installing it into $folder/env"
    "$python" -m venv "$folder/env"
    "$lerobot" -m pip --disable-pip-version-check --quiet install "${LEROBOT:-lerobot==0.4.4}"
fi

rm -rf "$folder/data"
mkdir "$folder/data"
export HF_HUB_OFFLINE=1 HF_HOME="$folder/cache" HF_DATASETS_CACHE="$folder/data/cache"
PYTHONPATH="$repo" "$python" "$check" export "$folder/data"
"$lerobot" "$check" load "$folder/data"
"$lerobot" "$check" record "$folder/data"
PYTHONPATH="$repo" "$python" "$check" import "$folder/data"
