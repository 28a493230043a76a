#!/usr/bin/env bash
# Install the Debian packages that the test cluster and its image builds need, if any is missing.
#
# Usage: packages.sh [--help]
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
# shellcheck source-path=SCRIPTDIR source=settings.sh
source "$here/settings.sh"
# shellcheck source-path=SCRIPTDIR source=report.sh
source "$here/report.sh"

packages=(
  # nodes
  containerd runc containernetworking-plugins iptables iproute2 conntrack socat kmod procps
  # images
  buildah golang-github-containers-common debootstrap debian-archive-keyring gcc libc6-dev
  # the scripts
  openssl ca-certificates curl xz-utils
  # the tests of metrics and alerts
  prometheus
)
policy=/usr/sbin/policy-rc.d

missing_packages() {
  local package
  for package in "${packages[@]}"; do
    [[ $(dpkg-query --show --showformat '${db:Status-Status}' "$package" 2>/dev/null) == installed ]] ||
      echo "$package"
  done
}

require_debian() {
  command -v apt-get >/dev/null || fail "this is no Debian: apt-get is missing" \
    "point GALVATRON_KUBECONFIG to a cluster of your own, or use a Debian 12 machine or container"
}

# The cluster starts containerd itself, once per node, and the tests start Prometheus; services of
# the same name would only take memory and ports.
forbid_autostart() {
  [[ -e $policy ]] && return
  printf '#!/bin/sh\nexit 101\n' >"$policy"
  chmod 755 "$policy"
  trap 'rm -f "$policy"' EXIT
}

# Keep them from starting at the next boot too, but only those that we have just installed.
disable_services() {
  [[ -d /run/systemd/system ]] || return 0
  local package
  for package in "$@"; do
    case "$package" in
      containerd | prometheus) systemctl disable --quiet "$package.service" || true ;;
    esac
  done
}

install_packages() {
  local log
  log=$(mktemp)
  export DEBIAN_FRONTEND=noninteractive
  if ! { apt-get update && apt-get install --yes --no-install-recommends "$@"; } >"$log" 2>&1; then
    tail -n 15 "$log" >&2
    fail "apt-get could not install: $*" "repair apt (log: $log), then run this again"
  fi
  rm -f "$log"
}

main() {
  help_if_asked "$0" "$@"
  local missing
  mapfile -t missing < <(missing_packages)
  ((${#missing[@]})) || return 0
  require_debian
  require_root "installing ${missing[*]}"
  forbid_autostart
  install_packages "${missing[@]}"
  disable_services "${missing[@]}"
}

main "$@"
