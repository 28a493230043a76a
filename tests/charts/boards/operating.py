"""The operator itself: is it alive, does it keep up."""

from charts.boards.asking import quantile
from charts.grafana import Asked, Board, Section, lines

ROUND = "galvatron_operator_reconcile_duration_seconds"

OPERATOR = Board(
    "galvatron-operator",
    "Galvatron / Operator",
    "The operator itself: whether it works, fails or falls behind.",
    (),
    (
        Section(
            "Work",
            (
                lines(
                    "Rounds",
                    "Looks at a job, by result; each failure is tried again.",
                    "ops",
                    Asked(
                        "sum by (result) (rate(galvatron_operator_reconcile_total[$__rate_interval]))",
                        "{{result}}",
                    ),
                ),
                lines(
                    "Rounds that failed",
                    "Share of all rounds. Conflict now and then is usual; Bug never is: read the operator's log.",
                    "percentunit",
                    Asked(
                        'sum(rate(galvatron_operator_reconcile_total{result!="Success"}[$__rate_interval]))'
                        " / sum(rate(galvatron_operator_reconcile_total[$__rate_interval]))",
                        "failed",
                    ),
                ),
                lines(
                    "Duration of a round",
                    "Mostly requests to the API server and to pods.",
                    "s",
                    Asked(quantile(0.99, ROUND, "$__rate_interval"), "99 of 100"),
                    Asked(quantile(0.5, ROUND, "$__rate_interval"), "half"),
                ),
                lines(
                    "Queue",
                    "Jobs that are due and wait for a worker. Longer and longer: the operator does not keep up.",
                    "short",
                    Asked("max(galvatron_operator_queue_depth)", "jobs"),
                ),
            ),
        ),
        Section(
            "Process",
            (
                lines(
                    "Jobs known",
                    "In the operator's cache.",
                    "short",
                    Asked("count(max by (namespace, galvatronjob) (galvatron_job_info))", "jobs"),
                    width=8,
                ),
                lines(
                    "Memory",
                    "Resident memory of the operator's process, without its searches.",
                    "bytes",
                    Asked("max(galvatron_operator_process_resident_memory_bytes)", "resident"),
                    width=8,
                ),
                lines(
                    "CPU",
                    "Cores that the operator's process takes, without its searches.",
                    "short",
                    Asked(
                        "max(rate(galvatron_operator_process_cpu_seconds_total[$__rate_interval]))",
                        "cores",
                    ),
                    width=8,
                ),
                lines(
                    "Leader",
                    "1 for the operator that acts; the others stand by.",
                    "short",
                    Asked("max by (pod) (galvatron_operator_leader)", "{{pod}}"),
                    width=8,
                ),
            ),
        ),
    ),
)
