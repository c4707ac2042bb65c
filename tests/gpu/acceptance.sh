#!/usr/bin/env bash
# What an owner of an NVIDIA machine runs in a quarter of an hour, from the source tree: tests/gpu/acceptance.sh [OUT]
# More options: tests/gpu/acceptance.sh --help. Nothing has to be installed beside what acceptance.py says is missing.
set -u
root=$(cd "$(dirname "$0")/../.." && pwd)
export PYTHONPATH="$root:$root/tests${PYTHONPATH:+:$PYTHONPATH}"
exec "${PYTHON:-python3}" "$root/tests/gpu/acceptance.py" "$@"
