#!/usr/bin/env bash
# Lose a node as by a power cut: its processes and containers die at once, its network goes.
# The API server is told nothing and notices after 20 s. `start-node` brings it back.
#
# Usage: stop-node.sh INDEX
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
for part in settings report network node clearing; do
  # shellcheck source=/dev/null
  source "$here/$part.sh"
done

main() {
  help_if_asked "$0" "$@"
  users_own_cluster stop-node && return
  require_root "stopping a node"
  require_node "${1:-}"
  local directory
  directory=$(node_dir "$1")
  # The network first: nobody hears the last words of a machine that lost its power.
  ip link set "$(node_link "$1")" down
  local cgroup
  cgroup=$CGROUP/$(node_name "$1")
  kill_nodes "$directory" "$cgroup"
  remove_shim_sockets "$directory"
  unmount_below "$directory"
  # A process may have been started while its starter died; and a cgroup that stays does no harm to a lost node.
  (remove_cgroups "$cgroup") || { kill_nodes "$directory" "$cgroup"; unmount_below "$directory"; }
  # As /run after a reboot. The images and the kubelet's directory are on disk and stay.
  rm -rf --one-file-system "$directory/containerd/state" "$directory/runc" || say "some of its files stay"
  say "$(node_name "$1") is gone"
}

main "$@"
