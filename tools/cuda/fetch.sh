#!/usr/bin/env bash
# Fetches the pinned CUDA toolkit of requirements.txt, once, and prints the folder it lies in.
#   tools/cuda/fetch.sh [--cached]     --cached: print the folder if it is there, else fail at once
# The folder is $EPIC_CUDA_CACHE, else ~/.cache/epic/cuda-13.0. It is laid out as nvcc and CMake
# expect a toolkit: bin, include, lib64, nvvm.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=${EPIC_CUDA_CACHE:-$HOME/.cache/epic/cuda-13.0}

complete() { cmp -s "$here/requirements.txt" "$cache/requirements.txt"; }

# Wheels carry libraries under their versioned names alone, and `lib` for nvcc's `lib64`.
lay_out() {
  local toolkit=$1/nvidia/cu13 library
  cp -al "$1/nvidia/nccl/include/." "$toolkit/include/"
  cp -al "$1/nvidia/nccl/lib/." "$toolkit/lib/"
  for library in "$toolkit"/lib/lib*.so.*; do
    ln -sf "$(basename "$library")" "${library%%.so.*}.so"
  done
  ln -sfn lib "$toolkit/lib64"
  chmod +x "$toolkit"/bin/* "$toolkit"/nvvm/bin/*
}

fetch() {
  local new=$cache.new
  rm -rf "$new"
  mkdir -p "$new"
  python3 -m venv "$new/venv"
  echo "fetching the CUDA toolkit into $cache (about 0.7 GB, once)" >&2
  "$new/venv/bin/pip" install -q --disable-pip-version-check --no-deps --no-compile \
    --only-binary :all: --require-hashes -r "$here/requirements.txt" --target "$new/wheels" >&2
  lay_out "$new/wheels"
  rm -rf "$new/venv" "$cache"
  mv "$new/wheels" "$new/tree"
  cp "$here/requirements.txt" "$new/requirements.txt"
  mv "$new" "$cache"
}

if ! complete; then
  [ "${1:-}" != --cached ] || exit 1
  fetch
fi
echo "$cache/tree/nvidia/cu13"
