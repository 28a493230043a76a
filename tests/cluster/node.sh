# One node: containerd, kubelet and kube-proxy in a network namespace, with a cgroup of its own;
# sourced by the scripts that start things, runs nothing.
# shellcheck shell=bash

uses_cgroup_v2() { [[ -f /sys/fs/cgroup/cgroup.controllers ]]; }

# The kubelet wants its root in every hierarchy, and a cpuset without CPUs takes no process.
make_cgroup_v1() {
  local path=$1 controller file
  for controller in /sys/fs/cgroup/*/; do
    controller=${controller%/}
    [[ -L $controller ]] && continue
    mkdir -p "$controller/$path"
  done
  for file in cpuset.cpus cpuset.mems; do
    cat "/sys/fs/cgroup/cpuset/$file" >"/sys/fs/cgroup/cpuset/${path%/*}/$file"
    cat "/sys/fs/cgroup/cpuset/$file" >"/sys/fs/cgroup/cpuset/$path/$file"
  done
}

make_cgroup_v2() {
  local path=$1 controllers
  mkdir -p "/sys/fs/cgroup/$path"
  controllers=$(sed 's/[^ ]*/+&/g' /sys/fs/cgroup/cgroup.controllers)
  echo "$controllers" >/sys/fs/cgroup/cgroup.subtree_control
  echo "$controllers" >"/sys/fs/cgroup/${path%/*}/cgroup.subtree_control"
}

make_node_cgroup() {
  if uses_cgroup_v2; then
    make_cgroup_v2 "$CGROUP/$(node_name "$1")"
  else
    make_cgroup_v1 "$CGROUP/$(node_name "$1")"
  fi
}

write_pod_network() {
  local directory=$1 index=$2
  mkdir -p "$directory/cni"
  cat >"$directory/cni/10-pods.conflist" <<JSON
{
  "cniVersion": "0.4.0",
  "name": "$POD_NETWORK",
  "plugins": [
    {
      "type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": false, "hairpinMode": true,
      "ipam": {
        "type": "host-local", "dataDir": "$directory/addresses",
        "ranges": [[{"subnet": "$(node_pods "$index")"}]], "routes": [{"dst": "0.0.0.0/0"}]
      }
    },
    {"type": "portmap", "capabilities": {"portMappings": true}}
  ]
}
JSON
}

# Everything that containerd makes is put below the node's directory, where clearing finds it.
# restrict_oom_score_adj: without CAP_SYS_RESOURCE runc dies when it lowers the score ("can't get
# final child's PID from pipe").
write_containerd_config() {
  local directory=$1
  cat >"$directory/containerd.toml" <<TOML
version = 2
root = "$directory/containerd/root"
state = "$directory/containerd/state"
[grpc]
  address = "$directory/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "$PAUSE_IMAGE"
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "$directory/cni"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        Root = "$directory/runc"
TOML
}

# imageGCHighThresholdPercent: an image that the kubelet collects could not be pulled again.
write_kubelet_config() {
  local directory=$1 name=$2
  cat >"$directory/kubelet.yaml" <<YAML
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication: {anonymous: {enabled: false}, webhook: {enabled: true}, x509: {clientCAFile: $PKI/ca.crt}}
authorization: {mode: Webhook}
cgroupDriver: cgroupfs
cgroupRoot: /$CGROUP/$name
enforceNodeAllocatable: []
containerRuntimeEndpoint: unix://$directory/containerd.sock
clusterDNS: [$DNS_ADDRESS]
clusterDomain: cluster.local
failSwapOn: false
resolvConf: $STATE/resolv.conf
podLogsDir: $directory/pod-logs
nodeStatusUpdateFrequency: 4s
evictionHard: {memory.available: 100Mi, nodefs.available: 1%, imagefs.available: 1%}
imageGCHighThresholdPercent: 100
YAML
}

# conntrack: its limits belong to the host and cannot be set from a network namespace.
write_proxy_config() {
  local directory=$1 name=$2
  cat >"$directory/proxy.yaml" <<YAML
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
clientConnection: {kubeconfig: $STATE/proxy.kubeconfig}
clusterCIDR: $POD_SUBNET
mode: iptables
hostnameOverride: $name
conntrack: {maxPerCore: 0}
YAML
}

prepare_node() {
  local index=$1 directory name
  directory=$(node_dir "$index") name=$(node_name "$index")
  mkdir -p "$directory/pod-logs"
  make_certificate "$name" "/O=system:nodes/CN=system:node:$name" "DNS:$name,IP:$(node_address "$index")"
  write_kubeconfig "$name" "$directory/kubelet.kubeconfig"
  write_pod_network "$directory" "$index"
  write_containerd_config "$directory"
  write_kubelet_config "$directory" "$name"
  write_proxy_config "$directory" "$name"
}

start_containerd() {
  local index=$1 name directory
  name=$(node_name "$index") directory=$(node_dir "$index")
  start "$name-containerd" nsenter "--net=/var/run/netns/$(node_netns "$index")" \
    containerd --config "$directory/containerd.toml"
  wait_until 90 "containerd of $name does not answer after 90 s" "read $LOGS/$name-containerd.log" \
    ctr_on_node "$index" version
}

load_system_images() {
  load_image "$1" pause
  load_image "$1" coredns
}

start_kubelet() {
  local index=$1 name directory
  name=$(node_name "$index") directory=$(node_dir "$index")
  start "$name-kubelet" nsenter "--net=/var/run/netns/$(node_netns "$index")" \
    "$BIN/kubelet" --config="$directory/kubelet.yaml" --kubeconfig="$directory/kubelet.kubeconfig" \
    --hostname-override="$name" --node-ip="$(node_address "$index")" \
    --root-dir="$directory/kubelet" --cert-dir="$directory/kubelet-certificates"
}

start_proxy() {
  local index=$1
  start "$(node_name "$index")-kube-proxy" nsenter "--net=/var/run/netns/$(node_netns "$index")" \
    "$BIN/kube-proxy" --config="$(node_dir "$index")/proxy.yaml"
}

start_node_processes() {
  start_containerd "$1"
  load_system_images "$1"
  start_kubelet "$1"
  start_proxy "$1"
}

start_node() {
  make_node_network "$1"
  make_node_cgroup "$1"
  start_node_processes "$1"
}

require_node() {
  [[ $1 =~ ^[0-9]$ && -d $(node_dir "$1") ]] ||
    fail "there is no node '$1'" "say one of these: $(node_indices | xargs), or make a cluster: cluster.sh up"
}

node_is_ready() {
  [[ $(kubectl get node "$(node_name "$1")" \
    --output 'jsonpath={.status.conditions[?(@.type=="Ready")].status}') == True ]]
}

wait_for_node() {
  local name
  name=$(node_name "$1")
  wait_until 180 "$name is not Ready after 180 s" \
    "read $LOGS/$name-kubelet.log and: kubectl describe node $name" node_is_ready "$1"
}
