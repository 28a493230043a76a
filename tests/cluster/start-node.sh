#!/usr/bin/env bash
# Bring back a node that `stop-node` took away, and wait until it is Ready.
#
# Usage: start-node.sh INDEX
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
for part in settings report network control_plane loading node clearing; do
  # shellcheck source=/dev/null
  source "$here/$part.sh"
done

is_running() { [[ -n $(pids_of kubelet "$(node_dir "$1")") ]]; }

main() {
  help_if_asked "$0" "$@"
  users_own_cluster start-node && return
  require_root "starting a node"
  require_node "${1:-}"
  if is_running "$1"; then
    say "$(node_name "$1") is already running"
    return
  fi
  export KUBECONFIG=$ADMIN_KUBECONFIG PATH=$BIN:$PATH
  ip link set "$(node_link "$1")" up
  make_node_cgroup "$1"
  start_node_processes "$1"
  phase "$(node_name "$1") ready" wait_for_node "$1"
}

main "$@"
