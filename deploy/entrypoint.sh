#!/bin/sh
# What the container runs: `ready` for its health check, or `volo` with whatever it is told.
set -eu

if [ "$*" = ready ]; then
  exec python -c '
import os, urllib.request as request
port, keys = os.environ.get("VOLO_PORT") or 8000, os.environ.get("VOLO_API_KEYS", "")
ready = request.Request(f"http://127.0.0.1:{port}/health/ready", headers={"X-API-Key": keys.split(",")[0].strip()})
request.build_opener(request.ProxyHandler({})).open(ready, timeout=4)
'
fi
# Triton's launcher was compiled with the image; the kernels that it compiles itself lie beside it and outlast us.
if [ -d /opt/triton ]; then
  mkdir -p "$TRITON_CACHE_DIR"
  cp -rn /opt/triton/. "$TRITON_CACHE_DIR"
fi
exec volo "$@"
