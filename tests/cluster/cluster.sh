#!/usr/bin/env bash
# A real Kubernetes of several nodes on this one machine, for the tests marked `k8s`.
#
# Usage: cluster.sh COMMAND
#   up [NODES]       make a fresh cluster (default 2 nodes), whatever was there before
#   images           build the operator and runtime images and load them into every node
#   env              print the shell lines that select the cluster: eval "$(cluster.sh env)"
#   status           show nodes, pods and images
#   stop-node INDEX  lose a node: its processes and containers die, its network goes
#   start-node INDEX bring that node back
#   down             remove the cluster and every trace of it, except the cache
#
# Variables:
#   GALVATRON_KUBECONFIG     use this cluster instead: up, down and images then do nothing
#   GALVATRON_CLUSTER_CACHE  where built things are kept (default: .cache/cluster)
#   GALVATRON_CLUSTER_BIN    ready-made binaries to start from (default: ../shared/cluster-bin)
# More: README.md beside this script.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
# shellcheck source-path=SCRIPTDIR source=settings.sh
source "$here/settings.sh"
# shellcheck source-path=SCRIPTDIR source=report.sh
source "$here/report.sh"

# Only export lines may reach standard output: it is meant for eval.
print_environment() {
  printf 'export KUBECONFIG=%q\n' "${GALVATRON_KUBECONFIG:-$ADMIN_KUBECONFIG}"
  # shellcheck disable=SC2016  # $PATH is for the shell that evaluates the line
  printf 'export PATH=%q:"$PATH"\n' "$BIN"
}

show_status() {
  if [[ ! -f $ADMIN_KUBECONFIG ]]; then
    say "down (no $ADMIN_KUBECONFIG)"
    exit 1
  fi
  export KUBECONFIG=$ADMIN_KUBECONFIG PATH=$BIN:$PATH
  kubectl get nodes -o wide
  kubectl get pods --all-namespaces -o wide
  local index
  for index in $(node_indices); do
    echo "images of $(node_name "$index"):"
    ctr_on_node "$index" images list --quiet 'name~=^localhost/' || echo "  containerd does not answer"
  done
}

main() {
  local command=${1:-}
  case "$command" in
    up | down | images | stop-node | start-node)
      shift
      exec "$here/$command.sh" "$@"
      ;;
    env) print_environment ;;
    status) show_status ;;
    -h | --help | help) usage "$0" ;;
    *)
      usage "$0" >&2
      exit 2
      ;;
  esac
}

main "$@"
