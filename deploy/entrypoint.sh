#!/bin/sh
# What the container runs: `ready` for its health check, or `volo` with whatever it is told.
set -eu

if [ "$*" = ready ]; then
  exec python -c '
import os, ssl, urllib.request as request
port, keys = os.environ.get("VOLO_PORT") or 8000, os.environ.get("VOLO_API_KEYS", "")
scheme = "https" if os.environ.get("VOLO_TLS_CERT") else "http"
ready = request.Request(f"{scheme}://127.0.0.1:{port}/health/ready", headers={"X-API-Key": keys.split(",")[0].strip()})
ours = request.HTTPSHandler(context=ssl._create_unverified_context())  # whose name is not 127.0.0.1
request.build_opener(request.ProxyHandler({}), ours).open(ready, timeout=4)
'
fi
# Triton's launcher was compiled with the image; the kernels that it compiles itself lie beside it and outlast us.
if [ -d /opt/triton ]; then
  mkdir -p "$TRITON_CACHE_DIR"
  cp -rn /opt/triton/. "$TRITON_CACHE_DIR"
fi
exec volo "$@"
