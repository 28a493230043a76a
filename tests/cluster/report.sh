# What the scripts say and how they fail; sourced by every script here, runs nothing but a trap.
# shellcheck shell=bash

say() { echo "cluster: $*" >&2; }

# fail PROBLEM REMEDY: stop with one line each.
fail() {
  trap - ERR
  say "error: $1"
  say "remedy: $2"
  exit 1
}

# phase TITLE COMMAND...: run the command, then tell how long it took.
phase() {
  local title=$1 start=$SECONDS
  shift
  "$@"
  say "$(printf '%-46s %4d s' "$title" $((SECONDS - start)))"
}

# wait_until SECONDS PROBLEM REMEDY COMMAND...: repeat the command until it succeeds.
wait_until() {
  local deadline=$((SECONDS + $1)) problem=$2 remedy=$3
  shift 3
  until "$@" >/dev/null 2>&1; do
    ((SECONDS < deadline)) || fail "$problem" "$remedy"
    sleep 0.3
  done
}

# usage FILE: print the comment block at the top of a script.
usage() { awk 'NR > 1 { if (!/^#/) exit; sub(/^# ?/, ""); print }' "$1"; }

# help_if_asked FILE ARGUMENTS...
help_if_asked() {
  local file=$1
  shift
  case "${1:-}" in
    -h | --help | help)
      usage "$file"
      exit 0
      ;;
  esac
}

require_root() {
  [[ $EUID -eq 0 ]] || fail "$1 needs root, this is $(id -un)" \
    "run it as root, or point GALVATRON_KUBECONFIG to a cluster of your own"
}

# users_own_cluster ACTION: true when the user brought a cluster, which is never ours to change.
users_own_cluster() {
  [[ -n ${GALVATRON_KUBECONFIG:-} ]] || return 1
  say "GALVATRON_KUBECONFIG is set: $1 leaves $GALVATRON_KUBECONFIG alone"
}

# One up, down or images at a time. Descriptor 9 stays open until the script ends; whatever is
# started in the background must close it, or the lock would live as long as the cluster.
take_lock() {
  exec 9>"$LOCK"
  flock --nonblock 9 && return
  say "waiting for another run of these scripts to finish"
  flock --timeout 900 9 || fail "another run still holds $LOCK" "look at: fuser -v $LOCK"
}

trap 'say "error: line $LINENO of ${BASH_SOURCE[0]##*/} failed: $BASH_COMMAND"' ERR
set -E
