"""All jobs: who runs, who waits, where the time of the GPUs goes."""

from charts.boards.asking import spread
from charts.grafana import Asked, Board, Section, Variable, lines, number

JOBS = 'namespace=~"$namespace"'
BY_JOB = "max by (namespace, galvatronjob)"
"""Once for each job, however many pods, or operators that take turns, tell of it."""

FLEET = Board(
    "galvatron-fleet",
    "Galvatron / Fleet",
    "All training jobs: who runs, who waits, and where the time of the GPUs goes.",
    (Variable("namespace", "Namespace", "label_values(galvatron_job_info, namespace)", takes_many=True),),
    (
        Section(
            "GPUs",
            (
                lines(
                    "Jobs by phase",
                    "As in kubectl get galvatronjobs.",
                    "short",
                    Asked(
                        f"count by (phase) (max by (namespace, galvatronjob, phase) (galvatron_job_info{{{JOBS}}}))",
                        "{{phase}}",
                    ),
                    width=8,
                ),
                lines(
                    "GPUs requested and used",
                    "Requested by pods that exist or wait for a node; used by pods in which steps advance. Devices of"
                    " jobs on CPU count as well.",
                    "short",
                    Asked(f"sum({BY_JOB} (galvatron_job_gpus_requested{{{JOBS}}}))", "requested"),
                    Asked(f"sum({BY_JOB} (galvatron_job_gpus_used{{{JOBS}}}))", "used"),
                    width=8,
                ),
                lines(
                    "Goodput",
                    "Share of the requested GPUs' time that is spent in steps: measuring, starting, saving and"
                    " waiting for nodes count against it. Steps that are made again count for it; see steps lost.",
                    "percentunit",
                    Asked(
                        f"sum({BY_JOB} (rate(galvatron_train_step_seconds_sum{{{JOBS}}}[$__rate_interval]))"
                        f" * on (namespace, galvatronjob) {BY_JOB} (galvatron_job_gpus_requested{{{JOBS}}}))"
                        f" / sum({BY_JOB} (galvatron_job_gpus_requested{{{JOBS}}}))",
                        "in steps",
                    ),
                    width=8,
                ),
                lines(
                    "Progress",
                    "Steps finished of those to be made.",
                    "percentunit",
                    Asked(
                        f"{BY_JOB} (galvatron_train_step{{{JOBS}}})"
                        f" / {BY_JOB} (galvatron_train_target_steps{{{JOBS}}})",
                        "{{namespace}}/{{galvatronjob}}",
                    ),
                ),
                lines(
                    "Step time against the plan",
                    "How much longer a step of each job takes than predicted.",
                    "percentunit",
                    Asked(
                        f"{BY_JOB} (galvatron_train_step_duration_seconds{{{JOBS}}})"
                        f" / {BY_JOB} (galvatron_train_predicted_step_seconds{{{JOBS}}}) - 1",
                        "{{namespace}}/{{galvatronjob}}",
                    ),
                ),
            ),
        ),
        Section(
            "Waiting",
            (
                number(
                    "From creation to the first step",
                    "Of jobs that made their first step in the chosen time; all namespaces.",
                    "s",
                    *spread("galvatron_queue_duration_seconds", "$__range"),
                ),
                number(
                    "Measuring a profile",
                    "Of profiles that were measured in the chosen time, waiting for their pods included; all"
                    " namespaces.",
                    "s",
                    *spread("galvatron_profile_duration_seconds", "$__range"),
                ),
                number(
                    "Searching a plan",
                    "Mean of all searches since the operator started, by algorithm and outcome; all namespaces.",
                    "s",
                    Asked(
                        "sum by (algorithm, outcome) (galvatron_search_duration_seconds_sum)"
                        " / sum by (algorithm, outcome) (galvatron_search_duration_seconds_count)",
                        "{{algorithm}}, {{outcome}}",
                    ),
                ),
                number(
                    "Profiles needed",
                    "By whether they were in the cache, since the operator started; all namespaces.",
                    "short",
                    Asked("sum by (result) (galvatron_profile_cache_requests_total)", "{{result}}"),
                ),
            ),
        ),
        Section(
            "Trouble",
            (
                number(
                    "Restarts by reason",
                    "In the chosen time; restarts of jobs that were deleted in it are not counted.",
                    "short",
                    Asked(
                        f"sum by (reason) (increase(galvatron_job_restarts_total{{{JOBS}}}[$__range])) > 0",
                        "{{reason}}",
                    ),
                    width=8,
                    height=8,
                ),
                number(
                    "Steps lost",
                    "Made again in the chosen time because they came after the newest training checkpoint.",
                    "short",
                    Asked(f"sum(increase(galvatron_job_lost_steps_total{{{JOBS}}}[$__range]))", "steps"),
                    width=8,
                    height=8,
                ),
                number(
                    "Failed jobs",
                    "Those that are Failed and not deleted yet.",
                    "short",
                    Asked(
                        f'sum({BY_JOB} (galvatron_job_status_condition{{{JOBS},type="Failed",status="True"}}))',
                        "failed",
                    ),
                    width=8,
                    height=8,
                ),
            ),
        ),
    ),
)
