#!/usr/bin/env bash
# Makes .venv with the locked dependencies and Readapt itself in editable form. Run by the Makefile; safe to repeat.
set -euo pipefail
cd "$(dirname "$0")/.."
say() { printf '\033[1m[setup]\033[0m %s\n' "$*" >&2; }

find_python() {
  for candidate in python3.13 python3.12 python3.11 python3; do
    if command -v "$candidate" >/dev/null && "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
}

python=$(find_python)
if [ -z "$python" ]; then
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    say "installing python3 and python3-venv with apt-get (about 20 s)"
    apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y python3 python3-venv ca-certificates >/dev/null
    python=$(find_python)
  fi
  [ -n "$python" ] || { say "Python 3.11 or newer with the venv module is needed: apt-get install python3 python3-venv"; exit 1; }
fi

if ! command -v g++ >/dev/null; then
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    say "installing g++ with apt-get (about 20 s): decoding on a CPU is compiled"
    apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y g++ >/dev/null
  else
    say "g++ is missing: tests of the CPU kernels will fail, serving on a CPU will be slow"
  fi
fi

free_gb=$(df -Pk . | awk 'NR == 2 {print int($4 / 1048576)}')
if [ ! -d .venv ] && [ "$free_gb" -lt 8 ]; then
  say "the virtual environment takes 5 GB and its downloads 3 GB; only ${free_gb} GB are free here: make room first"
  exit 1
fi
[ -x .venv/bin/python ] || { say "making .venv with $($python --version)"; "$python" -m venv .venv; }
say "installing locked dependencies (torch among them: about 1 min the first time, seconds later)"
.venv/bin/python -m pip --version >/dev/null 2>&1 || .venv/bin/python -m ensurepip >/dev/null
.venv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/uv.txt
.venv/bin/uv pip install --quiet --native-tls --python .venv/bin/python --require-hashes -r requirements/dev.txt
.venv/bin/uv pip install --quiet --native-tls --python .venv/bin/python --no-deps --no-build-isolation --editable .
touch .venv/.ready
