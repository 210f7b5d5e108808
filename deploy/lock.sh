#!/usr/bin/env bash
# Writes deploy/locks anew: what images install, to the byte. `make lock` runs it, with uv.
#   torch.txt    torch with CUDA, and what it needs
#   service.txt  all else that the service needs; ray.txt the same, for the nodes of a Ray cluster
# The versions are those of constraints.txt.
set -euo pipefail
UV=$(realpath "${UV:-$(command -v uv)}")
cd "$(dirname "$0")"

lock() { # name: requirements on standard input, but for torch, which has a lock of its own
  "$UV" pip compile - --quiet --generate-hashes --constraint constraints.txt --python-version 3.11 \
    --python-platform linux --no-annotate --custom-compile-command 'make lock' --output-file "locks/$1.txt"
}

needed() { python3 requirements.py ../pyproject.toml "$@"; }

needed | grep '^torch' | lock torch
needed tracing | grep -v '^torch' | lock service
needed tracing ray | grep -v '^torch' | lock ray
