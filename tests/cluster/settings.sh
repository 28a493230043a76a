# Names, addresses and places of the test cluster; sourced by every script here, runs nothing.
#
# Names and the state directory are fixed on purpose, not derived from the checkout: the next
# run may come from another clone and must find, and clear, what this one left behind.
# shellcheck shell=bash disable=SC2034  # the constants are used by the scripts that source this

CLUSTER_DIR=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
CHECKOUT=$(cd "$CLUSTER_DIR/../.." && pwd -P)

# ip, iptables and debootstrap, also for a caller that has not logged in as root.
export PATH=$PATH:/usr/sbin:/sbin

# What may be kept between runs (binaries, image archives, image build layers).
CACHE=${GALVATRON_CLUSTER_CACHE:-$CHECKOUT/.cache/cluster}
BIN=$CACHE/bin
# Ready-made binaries to start from, when somebody has put them there.
PREBUILT=${GALVATRON_CLUSTER_BIN:-$CHECKOUT/../shared/cluster-bin}

# What belongs to one running cluster and dies with it.
STATE=/var/lib/galvatron-test-cluster
LOGS=$STATE/logs
PKI=$STATE/pki
RUN=$STATE/run
SHARED=$STATE/shared
ADMIN_KUBECONFIG=$STATE/kubeconfig
LOCK=/var/lock/galvatron-test-cluster.lock

# Network: host and nodes on one bridge; each node routes a pod subnet of its own.
BRIDGE=galvatron0
NETNS_PREFIX=galvatron-node-
HOST_ADDRESS=10.243.0.1
NODE_SUBNET=10.243.0.0/24
POD_SUBNET=10.244.0.0/16
SERVICE_SUBNET=10.96.0.0/16
DNS_ADDRESS=10.96.0.10
API_SERVER=https://$HOST_ADDRESS:6443
# Not etcd's usual ports, so that an etcd of the host does not collide.
ETCD_CLIENT=http://127.0.0.1:12379
ETCD_PEER=http://127.0.0.1:12380

POD_NETWORK=galvatron-pods
CGROUP=galvatron-test-cluster
IPTABLES_COMMENT=galvatron-test-cluster

PAUSE_IMAGE=localhost/galvatron-test-pause:1
COREDNS_IMAGE=localhost/galvatron-test-coredns:1

node_name() { echo "node-$1"; }
node_netns() { echo "$NETNS_PREFIX$1"; }
node_link() { echo "galvatron-v$1"; }
node_address() { echo "10.243.0.$((10 + $1))"; }
node_pods() { echo "10.244.$1.0/24"; }
node_dir() { echo "$STATE/node-$1"; }

# Indices of the nodes of the running cluster, one per line; none when it is down.
node_indices() {
  local directory
  for directory in "$STATE"/node-*; do
    [[ -d $directory ]] && echo "${directory##*-}"
  done
  return 0
}

ctr_on_node() {
  local index=$1
  shift
  ctr --address "$(node_dir "$index")/containerd.sock" --namespace k8s.io "$@"
}
