# Removing a cluster: this one, one whose processes were killed, or one that another checkout
# made; sourced by up.sh and down.sh, runs nothing.
#
# Nothing here trusts what the cluster recorded about itself except file names: processes are found
# by the state directory in their command line and by their cgroup, mounts by their place.
# shellcheck shell=bash

# pids_of NAMES DIRECTORY: processes of these names with the directory in their arguments.
pids_of() {
  ps -eo pid=,comm=,args= |
    awk -v names="^($1)\$" -v directory="$2/" '$2 ~ names && index($0, directory) { print $1 }'
}

# cgroups_of PATH: its directory in every hierarchy of version 1, or the one of version 2.
cgroups_of() {
  local directory
  for directory in /sys/fs/cgroup/"$1" /sys/fs/cgroup/*/"$1"; do
    [[ -d $directory ]] && echo "$directory"
  done
  return 0
}

pids_in_cgroups() {
  local directory
  for directory in $(cgroups_of "$1"); do
    find "$directory" -name cgroup.procs -exec cat {} + 2>/dev/null || true
  done | sort -un
}

# kill_all WHAT COMMAND...: kill what the command lists until it lists nothing.
kill_all() {
  local what=$1 deadline=$((SECONDS + 20)) pids
  shift
  while pids=$("$@") && [[ -n $pids ]]; do
    # shellcheck disable=SC2086  # one word per process
    kill -KILL $pids 2>/dev/null || true
    ((SECONDS < deadline)) || fail "these $what do not die: $(tr '\n' ' ' <<<"$pids")" "restart the machine"
    sleep 0.1
  done
}

# kill_nodes DIRECTORY CGROUP: what starts others goes first, so that nothing comes back.
kill_nodes() {
  kill_all "kubelets" pids_of 'kubelet|kube-proxy|nsenter' "$1"
  kill_all "containerds" pids_of containerd "$1"
  kill_all "shims" pids_of 'containerd-shim.*' "$1"
  kill_all "containers" pids_in_cgroups "$2"
}

# The kernel cuts names of processes to 15 characters.
kill_control_plane() {
  kill_all "control plane processes" pids_of 'kube-apiserver|kube-controller|kube-scheduler|etcd' "$STATE"
}

# Shims put their sockets into a directory that all containerds of a host share.
remove_shim_sockets() {
  local file
  while IFS= read -r file; do
    file=$(<"$file")
    [[ $file == unix:///run/containerd/s/* ]] && rm -f "${file#unix://}"
  done < <(find "$1" -path '*/containerd/state/*' -name address -type f 2>/dev/null || true)
  rmdir --ignore-fail-on-non-empty /run/containerd/s /run/containerd 2>/dev/null || true
}

mounts_below() { awk -v directory="$1/" 'index($2, directory) == 1 { print $2 }' /proc/self/mounts | sort -r; }

# Some places are mounted upon more than once.
unmount_below() {
  local attempt
  for attempt in 1 2 3 4 5; do
    [[ -n $(mounts_below "$1") ]] || return 0
    mounts_below "$1" | xargs --no-run-if-empty umount --lazy 2>/dev/null || sleep "0.$attempt"
  done
}

# The kernel needs a moment after the last process.
remove_cgroups() {
  local directory
  for directory in $(cgroups_of "$1"); do
    wait_until 10 "$directory is still in use" "look at: find $directory -name cgroup.procs -exec cat {} +" \
      remove_cgroup "$directory"
  done
}

remove_cgroup() {
  find "$1" -depth -type d -exec rmdir {} + 2>/dev/null
  [[ ! -d $1 ]]
}

# A mount that stays could lead the removal into somebody's files: better not to remove at all.
remove_state() {
  [[ -d $STATE ]] || return 0
  [[ -z $(mounts_below "$STATE") ]] || fail "something is still mounted below $STATE" \
    "unmount: $(mounts_below "$STATE" | tr '\n' ' ')"
  rm -rf --one-file-system "$STATE"
}

clear_cluster() {
  kill_nodes "$STATE" "$CGROUP"
  kill_control_plane
  remove_shim_sockets "$STATE"
  unmount_below "$STATE"
  remove_network
  remove_cgroups "$CGROUP"
  restore_settings
  remove_state
}
