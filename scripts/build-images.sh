#!/usr/bin/env bash
# Builds localhost/readapt/operator and localhost/readapt/runtime with buildah.
#   BASE=IMAGE   base image with Python 3.11 or newer and venv (default: a Debian made here by debootstrap)
#   TAG=TAG      tag of both images (default: dev)
# Dependencies live in images of their own, tagged by the hash of their lock file, and are built only when it changes.
set -euo pipefail
cd "$(dirname "$0")/.."
tag=${TAG:-dev}
say() { printf '\033[1m[images]\033[0m %s\n' "$*" >&2; }

command -v buildah >/dev/null || {
  [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || { say "buildah is needed: install it, or build images/*.Containerfile with your own builder"; exit 1; }
  say "installing buildah with apt-get"
  apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y buildah >/dev/null
}
base=${BASE:-}
if [ -z "$base" ]; then
  .venv/bin/python -m readapt_cluster base-image
  base=localhost/readapt/base:bookworm
fi
# A proxy that inspects TLS is trusted through the host's certificates; elsewhere this mount changes nothing.
build() { buildah bud --isolation chroot --storage-driver overlay --layers=false --quiet -v /etc/ssl/certs:/etc/ssl/certs:ro "$@" >/dev/null; }

rm -rf dist
.venv/bin/python -m build --wheel --no-isolation --outdir dist . >/dev/null
.venv/bin/python -m readapt_kernels.cpu.build dist >/dev/null
headers() { [ -f "$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h" ]; }
headers || { [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null && { say "installing python3-dev with apt-get"; apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y python3-dev >/dev/null; }; } || true
.venv/bin/python -m readapt_kernels.triton_driver dist >/dev/null || say "the runtime image will not serve on a GPU"
for part in operator runtime; do
  key=$(cat "requirements/$part.txt" requirements/uv.txt images/deps.Containerfile | sha256sum | cut -c1-16)
  deps="localhost/readapt/$part-deps:$key"
  if ! buildah inspect --storage-driver overlay --type image "$deps" >/dev/null 2>&1; then
    say "dependencies of the $part image ($([ $part = runtime ] && echo 'about 2 min, 5 GB' || echo 'about 15 s'))"
    build --build-arg "BASE=$base" --build-arg "LOCK=$part" -f images/deps.Containerfile -t "$deps" .
  fi
  say "image localhost/readapt/$part:$tag"
  build --build-arg "DEPS=$deps" -f images/app.Containerfile -t "localhost/readapt/$part:$tag" .
done
