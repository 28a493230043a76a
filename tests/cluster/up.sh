#!/usr/bin/env bash
# Make a fresh cluster on this machine; whatever an earlier one left is cleared first.
#
# Usage: up.sh [NODES]    (default 2)
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
for part in settings report network clearing control_plane loading node; do
  # shellcheck source=/dev/null
  source "$here/$part.sh"
done

num_nodes=2

read_arguments() {
  help_if_asked "$0" "$@"
  (($# == 0)) && return
  [[ $1 =~ ^[1-9]$ ]] || fail "'$1' is not a number of nodes" "say a number from 1 to 9"
  num_nodes=$1
}

make_state() {
  mkdir -p "$LOGS" "$PKI" "$RUN"
  chmod 700 "$PKI"
  # For volumes: every pod user and every node may write here, the nodes share this disk.
  mkdir -m 1777 "$SHARED"
  # The host's servers must not leak in: what the cluster's DNS does not know does not exist.
  echo "nameserver 127.0.0.1" >"$STATE/resolv.conf"
  remember_settings
}

each_node() {
  local index
  for ((index = 0; index < num_nodes; index++)); do "$1" "$index"; done
}

start_nodes() {
  each_node prepare_node
  each_node start_node
  make_pod_routes
}

start_dns() { kubectl apply --filename "$CLUSTER_DIR/files/coredns.yaml" >/dev/null; }

dns_is_ready() {
  [[ $(kubectl --namespace kube-system get daemonset coredns \
    --output 'jsonpath={.status.numberReady}/{.status.desiredNumberScheduled}') == "$num_nodes/$num_nodes" ]]
}

wait_for_dns() {
  wait_until 180 "CoreDNS is not ready on every node after 180 s" \
    "look at: kubectl --namespace kube-system describe pods" dns_is_ready
}

# Objects that a plain cluster has a moment after its start, and that tests take for granted.
default_account_exists() { kubectl get serviceaccount default; }

bring_up() {
  phase "clearing what an earlier cluster left" clear_cluster
  make_state
  make_bridge
  phase "control plane" start_control_plane
  phase "starting $num_nodes nodes" start_nodes
  start_dns
  phase "nodes ready" each_node wait_for_node
  phase "DNS ready" wait_for_dns
  wait_until 90 "the default service account is missing" "read $LOGS/kube-controller-manager.log" \
    default_account_exists
}

main() {
  read_arguments "$@"
  users_own_cluster up && return
  require_root "making a cluster"
  take_lock
  phase "packages" "$here/packages.sh" 9>&-
  phase "binaries" "$here/binaries.sh" 9>&-
  phase "images of pause and CoreDNS" "$here/images.sh" --system 9>&-
  export KUBECONFIG=$ADMIN_KUBECONFIG PATH=$BIN:$PATH
  bring_up
  say "up in $SECONDS s; select it with: eval \"\$($here/cluster.sh env)\""
}

main "$@"
