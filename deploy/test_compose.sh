#!/usr/bin/env bash
# Proves the image and the compose file with real containers: builds the image, brings the CPU profile up with Prometheus,
# predicts, reads the numbers back from Prometheus, restarts the service, and stops it under load. Nothing of it stays.
#
#   deploy/test_compose.sh                                         # with docker compose
#   ENGINE=podman COMPOSE=podman-compose deploy/test_compose.sh    # with podman
#   BUILD=true deploy/test_compose.sh                              # with the image as it is
#
# TORCH_INDEX is handed on to the build: https://download.pytorch.org/whl/cpu makes it a small one.
set -euo pipefail
cd "$(dirname "$0")/.."
ENGINE=${ENGINE:-docker}
COMPOSE=${COMPOSE:-docker compose}
IMAGE=volo-serve:${VOLO_TAG:-0.1.0}
BUILD=${BUILD:-$ENGINE build --build-arg TORCH_INDEX=${TORCH_INDEX:-} --tag $IMAGE .}
export VOLO_PUBLISH=127.0.0.1:${PORT:-18000} PROMETHEUS_PUBLISH=${PROMETHEUS_PORT:-19090}
URL=http://$VOLO_PUBLISH
PROMETHEUS=http://127.0.0.1:$PROMETHEUS_PUBLISH
PICTURE=models/data/samples/coffee.jpg
[ ! -e .env ] || { echo "there is a .env, whose settings would be tested: move it away" >&2; exit 1; }
SCRATCH=$(mktemp -d)

compose() { $COMPOSE --project-name volo-test --profile cpu "$@"; }
container() {
  $ENGINE ps --all --quiet --filter label=com.docker.compose.project=volo-test --filter label=com.docker.compose.service=volo-cpu
}
step() { printf '\n\033[1m%s\033[0m\n' "$*"; }
fail() { printf 'FAILED: %s\n' "$*" >&2; exit 1; }
until_true() { # SECONDS COMMAND...
  local end=$((SECONDS + $1)); shift
  until "$@" >/dev/null 2>&1; do [ $SECONDS -lt $end ] || fail "not within the time: $*"; sleep 0.5; done
}
predict() { curl -sS --fail-with-body --data-binary "@$PICTURE" -H 'Content-Type: image/jpeg' "${1:-$URL}/predict?top_k=1"; }
direct() { # the container itself where it can be reached: an engine's proxy accepts what nobody answers
  local ip; ip=$($ENGINE inspect --format '{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}' "$(container)")
  if curl -sf --max-time 2 "http://$ip:8000/health/ready" >/dev/null; then echo "http://$ip:8000"; else echo "$URL"; fi
}
query() { curl -sS --get --data-urlencode "query=$1" "$PROMETHEUS/api/v1/query" | grep -o '"[0-9.]*"\]' | tr -d '"]'; }
is() { [ "$(query "$1")" = "$2" ]; }
ready() { curl -sf "$URL/health/ready"; }
clean_up() { compose down --volumes --timeout 20 >/dev/null 2>&1 || true; rm -rf "$SCRATCH"; }
trap clean_up EXIT

step "The image builds, runs as nobody in particular, and has no compiler"
$BUILD
[ "$($ENGINE run --rm --entrypoint id "$IMAGE" -u)" = 10001 ] || fail "it runs as another user"
$ENGINE run --rm --entrypoint sh "$IMAGE" -c '! command -v gcc cc clang' || fail "it has a compiler"
$ENGINE image inspect "$IMAGE" | grep -q '"SIGTERM"' || fail "it is not stopped by SIGTERM"

step "A change of the code changes a small layer"
$ENGINE history --no-trunc --format '{{.Size}} {{.CreatedBy}}' "$IMAGE" |
  grep -E '^[0-9]{1,2}(\.[0-9]+)? ?[kM]B .*COPY .*/opt/volo( |$)' || fail "dependencies are in the code's layer"

step "Asked for a GPU that is missing, it fails and says so"
if $ENGINE run --rm -e VOLO_DEVICE=cuda "$IMAGE" > "$SCRATCH/gpu" 2>&1; then fail "it served without one"; fi
grep 'cuda was asked for' "$SCRATCH/gpu" | head -1 || fail "it said something else: $(cat "$SCRATCH/gpu")"

step "The CPU profile comes up"
compose up --detach volo-cpu
until_true 120 ready
$ENGINE exec "$(container)" volo-entrypoint ready || fail "its health check does not find it ready"
if $ENGINE exec "$(container)" touch /opt/mark 2>/dev/null; then fail "its root can be written to"; fi
compose up --detach prometheus
until_true 60 curl -sf "$PROMETHEUS/-/ready"

step "It answers, and Prometheus has the number"
for _ in $(seq 20); do predict > "$SCRATCH/answer"; done
cat "$SCRATCH/answer"
until_true 60 is 'sum(volo_requests_total{endpoint="/predict",outcome="ok"})' 20
is 'count(up)' 1 || fail "it scrapes what is not there"
echo "20 of 20 requests read back from Prometheus, which has one target, the service"

step "It restarts"
compose restart volo-cpu
until_true 120 ready
predict > /dev/null

step "Stopped under load, it answers all that it has accepted"
rm -f "$SCRATCH/stopped"
target=$(direct)
load() { while [ ! -e "$SCRATCH/stopped" ]; do predict "$target" > /dev/null 2>&1; echo $?; done > "$SCRATCH/statuses.$1"; }
for number in 1 2 3 4; do load "$number" & done
loaded() { [ "$(cat "$SCRATCH"/statuses.* | wc -l)" -ge 40 ]; }
until_true 60 loaded
stopped=$(container)
compose stop --timeout 30 volo-cpu
touch "$SCRATCH/stopped"
wait
lost=$(cat "$SCRATCH"/statuses.* | grep -vcE '^(0|7)$' || true) # curl's 7: not connected, for nobody listens any more
printf '%s answered, %s lost, exit status %s\n' "$(cat "$SCRATCH"/statuses.* | grep -c '^0$')" "$lost" \
  "$($ENGINE inspect --format '{{.State.ExitCode}}' "$stopped")"
[ "$lost" = 0 ] || fail "requests were lost"
[ "$($ENGINE inspect --format '{{.State.ExitCode}}' "$stopped")" = 0 ] || fail "it did not end well"

step "All of it holds"
