#!/usr/bin/env bash
# Put into the cache what other projects publish about gangs and queues, and print where it is: the PodGroup of
# scheduler-plugins as a CRD, that of Volcano as Go types (its CRD is in no module), and the names that Kueue uses.
#
# Usage: schemas.sh [--help]
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
# shellcheck source-path=SCRIPTDIR source=settings.sh
source "$here/settings.sh"
# shellcheck source-path=SCRIPTDIR source=report.sh
source "$here/report.sh"

# Module, version, and its sum as Go's checksum database has it; then the files of it.
modules=(
  "sigs.k8s.io/scheduler-plugins v0.34.1-devel h1:tT0/rFgjM7+VVDTKkcjA/XxhpYgRyq+RV0P7QW1Pxvo="
  "volcano.sh/apis v1.13.0 h1:MZKCBBxsgsT4eJXO1//MXq2KddBFLq9tZETTAt2YjMI="
  "sigs.k8s.io/kueue v0.17.0 h1:7hzb38M4eKGzYW+CFv2s1L+swzzacUCHOCXxZmAV90I="
)
declare -A files=(
  [sigs.k8s.io/scheduler-plugins]="config/crd/bases/scheduling.x-k8s.io_podgroups.yaml apis/scheduling/v1alpha1/types.go
    manifests/install/charts/as-a-second-scheduler/values.yaml"
  [volcano.sh/apis]="pkg/apis/scheduling/v1beta1/types.go pkg/apis/scheduling/v1beta1/labels.go"
  [sigs.k8s.io/kueue]="pkg/controller/constants/constants.go pkg/controller/jobs/pod/constants/constants.go"
)
schemas=$CACHE/schemas
stamp=$schemas/.inputs

field() { sed -n "s/^\t\"$1\": \"\(.*\)\",\{0,1\}\$/\1/p" <<<"$2"; }

# fetch MODULE VERSION SUM: outside of any module, since these are read and never built.
fetch() {
  local answer directory file
  answer=$(cd "$schemas" && GOFLAGS=-mod=mod GOWORK=off go mod download -json "$1@$2") ||
    fail "$1 $2 cannot be had: $(field Error "$answer")" "make the Go module proxy reachable (GOPROXY)"
  [[ $(field Sum "$answer") == "$3" ]] || fail "$1 $2 has sum $(field Sum "$answer"), not $3" \
    "find out who changed it; after a change of its version here, write its new sum beside it"
  directory=$(field Dir "$answer")
  for file in ${files[$1]}; do
    install -D --mode=644 "$directory/$file" "$schemas/$1/$file"
  done
}

main() {
  help_if_asked "$0" "$@"
  local digest module
  digest=$(sha256sum "${BASH_SOURCE[0]}" | cut -d ' ' -f 1)
  if [[ ! -f $stamp || $(<"$stamp") != "$digest" ]]; then
    command -v go >/dev/null || fail "Go is missing, which fetches the schemas" "install Go from https://go.dev/dl"
    rm -rf "$schemas"
    mkdir -p "$schemas"
    # shellcheck disable=SC2086  # three words each
    for module in "${modules[@]}"; do fetch $module; done
    echo "$digest" >"$stamp"
  fi
  echo "$schemas"
}

main "$@"
