#!/usr/bin/env bash
# Remove the test cluster of this machine and every trace of it; the cache stays.
#
# Usage: down.sh [--help]
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
for part in settings report network clearing; do
  # shellcheck source=/dev/null
  source "$here/$part.sh"
done

main() {
  help_if_asked "$0" "$@"
  users_own_cluster down && return
  require_root "removing the cluster"
  take_lock
  phase "down" clear_cluster
}

main "$@"
