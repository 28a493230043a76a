#!/usr/bin/env bash
# `make test`: all checks and all tests. Where the machine cannot carry a part of them, one line says which part and
# why; with CI=true such a gap is a failure.
set -euo pipefail
cd "$(dirname "$0")/.."
bin=.venv/bin
export OMP_NUM_THREADS=1

phase() { printf '\n== %s (%s s since the start)\n' "$1" "$SECONDS"; }

# Prints why the cluster's tests cannot run here; nothing when they can.
cluster_gap() {
  if [ -n "${GALVATRON_KUBECONFIG:-}" ]; then return; fi
  if [ "$(uname -s)" != Linux ]; then echo "this is not Linux"; return; fi
  if [ "$(id -u)" != 0 ]; then echo "not root"; return; fi
  if ! command -v apt-get >/dev/null; then echo "no apt-get (needs Debian's containerd, buildah, ...)"; return; fi
  if ! command -v go >/dev/null && [ ! -x .cache/cluster/bin/kube ] && [ ! -d "${GALVATRON_CLUSTER_BIN:-../shared/cluster-bin}" ]; then
    echo "no Go toolchain to build Kubernetes with"
  fi
}

phase "format, lint, types, contracts, fast tests"
make --no-print-directory check

gap=$(cluster_gap)
images_log=$(mktemp)
if [ -z "$gap" ]; then
  # The images take about a core, as these tests do, and none of these has to be fast. A build is never broken off.
  trap wait EXIT
  bash tests/cluster/cluster.sh images --build >"$images_log" 2>&1 &
  images=$!
fi

phase "slow tests of one process${images:+; beside them the images}"
"$bin/pytest" -q -m "slow and not distributed and not gpu and not k8s and not helm"
if [ -n "${images:-}" ]; then
  wait "$images" || { cat "$images_log"; exit 1; }
  cat "$images_log"
fi
rm -f "$images_log"

phase "tests with several processes"
"$bin/pytest" -q -m "distributed and not gpu and not k8s and not helm"

if [ -n "$gap" ]; then
  echo "LEFT OUT: tests on a real cluster (markers k8s, helm), because: $gap" >&2
  [ "${CI:-}" != true ] || exit 1
  exit 0
fi

phase "cluster: packages, binaries, nodes, the images into the nodes"
bash tests/cluster/cluster.sh up
bash tests/cluster/cluster.sh images
eval "$(bash tests/cluster/cluster.sh env)"
export GALVATRON_REQUIRE_CLUSTER=1

phase "chart and cluster tests"
status=0
"$bin/pytest" -q -m "helm or k8s" || status=$?
if [ "$status" = 1 ]; then  # 1: tests failed; anything else (interrupted, usage, collection) is not worth a second try
  phase "the tests that failed, once more on new fixtures: what passes now depends on the machine's pace, and is worth a look"
  status=0
  "$bin/pytest" -q -m "helm or k8s" --last-failed --last-failed-no-failures none || status=$?
fi
[ -n "${GALVATRON_KEEP_CLUSTER:-}" ] || bash tests/cluster/cluster.sh down
phase "done"
exit "$status"
