#!/usr/bin/env bash
# Writes the lock files from pyproject.toml: hashes, no index address.
set -euo pipefail
cd "$(dirname "$0")/.."
lock() { uv pip compile --quiet --generate-hashes --no-emit-index-url --no-annotate --no-header --python-version 3.11 "$@"; }
lock requirements/uv.in --output-file requirements/uv.txt
for extra in operator runtime dev; do
  lock pyproject.toml --extra "$extra" --constraints requirements/constraints.in --output-file "requirements/$extra.txt"
done
