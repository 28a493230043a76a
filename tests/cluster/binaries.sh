#!/usr/bin/env bash
# Put kube (etcd, all Kubernetes parts, kubectl), coredns and helm into the cache's bin directory:
# unpacked from ready-made ones if there are any with correct sums, else built from go.mod.
#
# Usage: binaries.sh [--help]
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
# shellcheck source-path=SCRIPTDIR source=settings.sh
source "$here/settings.sh"
# shellcheck source-path=SCRIPTDIR source=report.sh
source "$here/report.sh"

binaries=(kube coredns helm)
names_of_kube=(etcd kube-apiserver kube-controller-manager kube-scheduler kube-proxy kubelet kubectl)
inputs=(go.mod go.sum kube/main.go coredns/main.go binaries.sh)
stamp=$BIN/.inputs

inputs_digest() { (cd "$CLUSTER_DIR" && cat "${inputs[@]}" | sha256sum | cut -d ' ' -f 1); }

is_cached() { [[ -f $stamp && $(<"$stamp") == "$(inputs_digest)" ]]; }

# version_of MODULE: as go.mod pins it, for instance v1.34.4.
version_of() { awk -v module="$1" '$1 == module && $2 ~ /^v/ { print $2; exit }' "$CLUSTER_DIR/go.mod"; }

link_names_of_kube() {
  local name
  for name in "${names_of_kube[@]}"; do ln -sf kube "$BIN/$name"; done
}

has_correct_sums() {
  [[ -f $PREBUILT/SHA256SUMS ]] || return 1
  (cd "$PREBUILT" && sha256sum --check --strict --status SHA256SUMS) && return
  say "the sums in $PREBUILT/SHA256SUMS do not agree with its files: building instead"
  return 1
}

# Correct sums do not tell that they belong to this go.mod, the versions do.
have_pinned_versions() {
  # No pipes into grep -q: it ends at the first match, and a program that then still writes fails the pipe.
  [[ $("$BIN/kubectl" version --client 2>/dev/null) == *"$(version_of k8s.io/kubernetes)"* ]] &&
    [[ $("$BIN/coredns" -version 2>/dev/null) == *"$(version_of github.com/coredns/coredns | tr -d v)"* ]] &&
    [[ $("$BIN/helm" version --short 2>/dev/null) == *"$(version_of helm.sh/helm/v3 | cut -d . -f 1,2)"* ]] && return
  say "the binaries in $PREBUILT have other versions than go.mod: building instead"
  return 1
}

unpack_prebuilt() {
  has_correct_sums || return 1
  local binary
  for binary in "${binaries[@]}"; do
    [[ -f $PREBUILT/$binary.xz ]] || return 1
    xz --decompress --stdout "$PREBUILT/$binary.xz" >"$BIN/$binary.new"
    chmod 755 "$BIN/$binary.new"
    # By renaming, since a running cluster may hold the old file open.
    mv "$BIN/$binary.new" "$BIN/$binary"
  done
  link_names_of_kube
  have_pinned_versions
}

require_go() {
  command -v go >/dev/null || fail "no ready-made binaries in $PREBUILT, and Go is missing to build them" \
    "install Go $(wanted_go) or newer from https://go.dev/dl, or set GALVATRON_CLUSTER_BIN"
  (cd "$CLUSTER_DIR" && go list -m >/dev/null 2>&1) || fail \
    "$(go version | cut -d ' ' -f 3) cannot build this module, which needs Go $(wanted_go)" \
    "install a newer Go from https://go.dev/dl (Debian's is too old), or set GALVATRON_CLUSTER_BIN"
}

wanted_go() { awk '$1 == "go" { print $2 }' "$CLUSTER_DIR/go.mod"; }

# build NAME PACKAGE LINKER_FLAGS
build() {
  (cd "$CLUSTER_DIR" && CGO_ENABLED=0 go build -trimpath -buildvcs=false -ldflags "-s -w $3" -o "$BIN/$1.new" "$2") \
    2> >(grep -v '^go: downloading' >&2)
  mv "$BIN/$1.new" "$BIN/$1"
}

# Without the version stamp, kubelet and kubectl refuse or misread what they meet.
kubernetes_version_flags() {
  local version major minor
  version=$(version_of k8s.io/kubernetes)
  IFS=. read -r major minor _ <<<"${version#v}"
  echo "-X k8s.io/component-base/version.gitVersion=$version" \
    "-X k8s.io/component-base/version.gitMajor=$major -X k8s.io/component-base/version.gitMinor=$minor" \
    "-X k8s.io/client-go/pkg/version.gitVersion=$version"
}

build_all() {
  require_go
  phase "  building kube (up to 10 minutes)" build kube ./kube "$(kubernetes_version_flags)"
  phase "  building coredns" build coredns ./coredns ""
  phase "  building helm" build helm helm.sh/helm/v3/cmd/helm \
    "$(kubernetes_version_flags) -X helm.sh/helm/v3/internal/version.version=$(version_of helm.sh/helm/v3)"
  link_names_of_kube
}

main() {
  help_if_asked "$0" "$@"
  is_cached && return
  mkdir -p "$BIN"
  rm -f "$stamp"
  unpack_prebuilt || build_all
  inputs_digest >"$stamp"
}

main "$@"
