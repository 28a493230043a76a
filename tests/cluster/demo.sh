#!/usr/bin/env bash
# Install the operator into the test cluster and give it an example job to look at.
#
# Usage: demo.sh [--help]
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
# shellcheck source-path=SCRIPTDIR source=settings.sh
source "$here/settings.sh"
# shellcheck source-path=SCRIPTDIR source=report.sh
source "$here/report.sh"

install_operator() {
  helm upgrade galvatron "$CHECKOUT/charts/galvatron-operator" --install --namespace galvatron-system --create-namespace \
    --wait --timeout 3m >/dev/null
}

apply_example() { kubectl apply -f "$CHECKOUT/docs/examples/gpt-2-node-cpu.yaml" >/dev/null; }

main() {
  help_if_asked "$0" "$@"
  eval "$("$here/cluster.sh" env)"
  phase "installing the operator" install_operator
  phase "applying docs/examples/gpt-2-node-cpu.yaml" apply_example
  cat <<END

The cluster is up, with the operator and one job. To look at it:

  eval "\$(bash tests/cluster/cluster.sh env)"
  kubectl get galvatronjobs --watch
  kubectl describe galvatronjob gpt-2-node-cpu
  kubectl logs gpt-2-node-cpu-0 --follow

make cluster-down removes it.
END
}

main "$@"
