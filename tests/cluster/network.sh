# The bridge between host and nodes, the nodes' network namespaces, and what must be set on the
# host for them; sourced by the scripts that start and clear things, runs nothing.
# shellcheck shell=bash

# Kernel settings that the cluster or its kubelets change for the whole host.
changed_settings=(
  net.ipv4.ip_forward vm.overcommit_memory vm.panic_on_oom kernel.panic kernel.panic_on_oops
  kernel.keys.root_maxkeys kernel.keys.root_maxbytes
)

remember_settings() { sysctl --ignore "${changed_settings[@]}" >"$STATE/settings.before" 2>/dev/null || true; }

restore_settings() {
  [[ -s $STATE/settings.before ]] || return 0
  sysctl --quiet --load "$STATE/settings.before" >/dev/null 2>&1 || true
}

# A container engine on the same host may drop what is forwarded, bridged frames included.
forwarding_rules() {
  local action=$1 direction
  for direction in --in-interface --out-interface; do
    iptables --wait "$action" FORWARD $direction "$BRIDGE" \
      --match comment --comment "$IPTABLES_COMMENT" --jump ACCEPT 2>/dev/null || return 1
  done
}

make_bridge() {
  if [[ -n $(ip -4 route show "$NODE_SUBNET") ]]; then
    fail "another network of this host already has $NODE_SUBNET" "remove it: ip -4 route show $NODE_SUBNET"
  fi
  ip link add "$BRIDGE" type bridge
  ip addr add "$HOST_ADDRESS/24" dev "$BRIDGE"
  ip link set "$BRIDGE" up
  sysctl --quiet --write net.ipv4.ip_forward=1
  forwarding_rules --insert
}

make_node_network() {
  local index=$1 netns link
  netns=$(node_netns "$index") link=$(node_link "$index")
  ip netns add "$netns"
  ip link add "$link" type veth peer name eth0 netns "$netns"
  ip link set "$link" master "$BRIDGE" up
  ip -n "$netns" addr add "$(node_address "$index")/24" dev eth0
  ip -n "$netns" link set lo up
  ip -n "$netns" link set eth0 up
  ip -n "$netns" route add default via "$HOST_ADDRESS"
  in_network "$index" sysctl --quiet --write net.ipv4.ip_forward=1
  # The host reaches the pods too: a Prometheus or a test on the host may scrape them.
  ip route replace "$(node_pods "$index")" via "$(node_address "$index")"
}

# Pods of different nodes talk over the bridge directly, not through the host's routing.
make_pod_routes() {
  local from to
  for from in $(node_indices); do
    for to in $(node_indices); do
      [[ $from == "$to" ]] && continue
      ip -n "$(node_netns "$from")" route replace "$(node_pods "$to")" via "$(node_address "$to")"
    done
  done
  # And the host reaches Services, through the kube-proxy of the first node.
  ip route replace "$SERVICE_SUBNET" via "$(node_address 0)"
}

# By nsenter: `ip netns exec` mounts another /sys, where the kubelet would find no cgroups.
in_network() {
  local index=$1
  shift
  nsenter "--net=/var/run/netns/$(node_netns "$index")" "$@"
}

remove_network() {
  local name
  for name in $(ip netns list | awk -v prefix="$NETNS_PREFIX" 'index($1, prefix) == 1 { print $1 }'); do
    ip netns delete "$name"
  done
  for name in $(ip -brief link show type veth | awk -F '[@ ]' 'index($1, "galvatron-v") == 1 { print $1 }'); do
    ip link delete "$name" 2>/dev/null || true
  done
  while forwarding_rules --delete; do :; done
  ip link delete "$BRIDGE" 2>/dev/null || true
  remove_network_records
}

# What ip and the CNI plugins keep in places of the whole host: ours, and what is empty then.
remove_network_records() {
  local record pod
  for record in /var/lib/cni/results/"$POD_NETWORK"-*-eth0; do
    pod=${record##*/"$POD_NETWORK"-}
    # Every container engine calls its loopback network the same; the pod's id tells whose it is.
    rm -f "$record" "/var/lib/cni/results/cni-loopback-${pod%-eth0}-lo"
  done
  rmdir /var/lib/cni/results /var/lib/cni 2>/dev/null || true
  [[ -n $(ip netns list) ]] && return
  umount --lazy /run/netns 2>/dev/null || true
  rmdir /run/netns 2>/dev/null || true
}
