"""One job: is it as fast as planned, does it fit, does it learn, what has happened to it."""

from charts.boards.asking import spread
from charts.grafana import Asked, Board, Form, Section, Shown, Variable, lines, number

THIS = 'namespace="$namespace",galvatronjob="$galvatronjob"'


def latest(metric: str) -> str:
    """A number that all pods of a job tell alike."""
    return f"max({metric}{{{THIS}}})"


def since_creation(event: str) -> str:
    """Seconds from the creation of a job to something that is dated."""
    return f"max({event}) - {latest('galvatron_job_created_timestamp_seconds')}"


def became_true(condition: str) -> str:
    """When a condition of a job became true, if it is."""
    of = f'{THIS},type="{condition}"'
    return (
        f"galvatron_job_status_condition_transition_timestamp_seconds{{{of}}}"
        f' and on (type) galvatron_job_status_condition{{{of},status="True"}} == 1'
    )


JOB = Board(
    "galvatron-job",
    "Galvatron / Job",
    "One training job: what the plan promised and what came of it.",
    (
        Variable("namespace", "Namespace", "label_values(galvatron_job_info, namespace)"),
        Variable("galvatronjob", "Job", 'label_values(galvatron_job_info{namespace="$namespace"}, galvatronjob)'),
    ),
    (
        Section(
            "Now",
            (
                Shown(
                    "Plan",
                    "As in status.plan.summary: stages, micro-batches, and the strategies of the layers.",
                    "short",
                    (Asked(f'max by (plan) (galvatron_job_info{{{THIS},plan!=""}})', "{{plan}}"),),
                    width=24,
                    height=3,
                    form=Form.NAMES,
                ),
                number(
                    "Step",
                    "Steps finished, and to be made in all.",
                    "short",
                    Asked(latest("galvatron_train_step"), "step"),
                    Asked(latest("galvatron_train_target_steps"), "of"),
                ),
                number(
                    "Time left",
                    "Steps to be made, at the pace of the recent ones; training checkpoints and restarts not counted.",
                    "s",
                    Asked(
                        f"({latest('galvatron_train_target_steps')} - {latest('galvatron_train_step')})"
                        f" * {latest('galvatron_train_step_duration_seconds')}",
                        "left",
                    ),
                ),
                number(
                    "Step time against the plan",
                    "How much longer a step takes than predicted. Far from 0: the profile is old, or the nodes are"
                    " shared.",
                    "percentunit",
                    Asked(
                        f"{latest('galvatron_train_step_duration_seconds')}"
                        f" / {latest('galvatron_train_predicted_step_seconds')} - 1",
                        "slower by",
                    ),
                ),
                number(
                    "Goodput",
                    "Steps that count, at the recent pace, over the time since the plan was ready, from when on GPUs"
                    " are asked for. Steps that were lost do not count; a suspension counts as time.",
                    "percentunit",
                    Asked(
                        f"{latest('galvatron_train_step')} * {latest('galvatron_train_step_duration_seconds')}"
                        f" / (time() - max({became_true('PlanReady')}))",
                        "goodput",
                    ),
                ),
                number(
                    "Since the last step",
                    "Grows while nothing happens; spec.failurePolicy.progressDeadlineSeconds ends that.",
                    "s",
                    Asked(f"time() - {latest('galvatron_train_last_step_timestamp_seconds')}", "since"),
                ),
                number(
                    "Attempt",
                    "Number of the current start of all trainers.",
                    "short",
                    Asked(latest("galvatron_train_attempt"), "attempt"),
                ),
                number(
                    "Steps lost",
                    "Made again after restarts, because they came after the newest training checkpoint.",
                    "short",
                    Asked(latest("galvatron_job_lost_steps_total"), "steps"),
                ),
                number(
                    "Last training checkpoint",
                    "Step of the newest complete one, 0 for none.",
                    "short",
                    Asked(latest("galvatron_train_last_checkpoint_step"), "step"),
                ),
            ),
        ),
        Section(
            "Speed",
            (
                lines(
                    "Throughput in tokens",
                    "Of the whole job, over recent steps.",
                    "suffix: tok/s",
                    Asked(latest("galvatron_train_tokens_per_second"), "tokens"),
                ),
                lines(
                    "Throughput in samples",
                    "Of the whole job, over recent steps.",
                    "suffix: samples/s",
                    Asked(latest("galvatron_train_samples_per_second"), "samples"),
                ),
                lines(
                    "Step time: measured and predicted",
                    "Median of recent steps beside what the plan expects.",
                    "s",
                    Asked(latest("galvatron_train_step_duration_seconds"), "measured"),
                    Asked(latest("galvatron_train_predicted_step_seconds"), "predicted"),
                ),
                lines(
                    "Spread of step times",
                    "Interpolated within the buckets of a histogram. Far apart: something disturbs single steps.",
                    "s",
                    *spread("galvatron_train_step_seconds", "$__rate_interval", of=THIS, together="max"),
                ),
                lines(
                    "Time in steps",
                    "Share of the time in which steps are being made; the rest is training checkpoints, restarts and"
                    " start-up.",
                    "percentunit",
                    Asked(f"max(rate(galvatron_train_step_seconds_sum{{{THIS}}}[$__rate_interval]))", "in steps"),
                    width=8,
                ),
                lines(
                    "Model FLOPs utilization",
                    "FLOPs of the model per second over the dense BF16 peak of all devices; empty for devices of"
                    " unknown peak.",
                    "percentunit",
                    Asked(latest("galvatron_train_flops_utilization_ratio"), "utilization"),
                    width=8,
                ),
                lines(
                    "Pipeline bubble",
                    "Waiting for other stages over computing and waiting, last step.",
                    "percentunit",
                    Asked(f"max by (stage) (galvatron_train_bubble_ratio{{{THIS}}})", "stage {{stage}}"),
                    width=8,
                ),
            ),
        ),
        Section(
            "Memory and learning",
            (
                lines(
                    "Memory of each rank against the budget",
                    "Peak of each rank, what the plan expects of its stage, and spec.budget.memoryPerGPU.",
                    "bytes",
                    Asked(
                        f"max by (pod, local_rank, stage) (galvatron_train_memory_peak_bytes{{{THIS}}})",
                        "{{pod}} rank {{local_rank}}, stage {{stage}}",
                    ),
                    Asked(
                        f"max by (stage) (galvatron_train_predicted_memory_bytes{{{THIS}}})",
                        "predicted, stage {{stage}}",
                    ),
                    Asked(latest("galvatron_job_memory_budget_bytes"), "budget"),
                    width=8,
                ),
                lines(
                    "Loss",
                    "Mean cross entropy per token of the last step.",
                    "short",
                    Asked(latest("galvatron_train_loss"), "loss"),
                    width=8,
                ),
                lines(
                    "Gradient norm",
                    "Before clipping; empty when nothing is clipped.",
                    "short",
                    Asked(latest("galvatron_train_gradient_norm"), "norm"),
                    width=8,
                ),
            ),
        ),
        Section(
            "What happened",
            (
                Shown(
                    "Phases",
                    "Which phase the job was in, and when.",
                    "short",
                    (Asked(f"max by (phase) (galvatron_job_info{{{THIS}}})", "{{phase}}"),),
                    width=12,
                    form=Form.STATES,
                ),
                number(
                    "From creation to",
                    "When the profile, the plan and the first step were there.",
                    "s",
                    Asked(since_creation(became_true("ProfileReady")), "profile"),
                    Asked(since_creation(became_true("PlanReady")), "plan"),
                    Asked(
                        since_creation(f"galvatron_job_first_step_timestamp_seconds{{{THIS}}}"),
                        "first step",
                    ),
                    width=12,
                    height=8,
                ),
                number(
                    "Restarts by reason",
                    "Since the job was created; empty without any. status.failures tells more of the newest ten.",
                    "short",
                    Asked(f"max by (reason) (galvatron_job_restarts_total{{{THIS}}}) > 0", "{{reason}}"),
                    width=8,
                    height=8,
                ),
                number(
                    "Training checkpoints",
                    "Completed in the chosen time, restarts included.",
                    "short",
                    Asked(
                        f"max(increase(galvatron_train_checkpoint_duration_seconds_count{{{THIS}}}[$__range]))",
                        "completed",
                    ),
                    width=8,
                    height=8,
                ),
                number(
                    "Duration of training checkpoints",
                    "From the wish to the last byte, in the chosen time. Longer than their interval: write them less"
                    " often, or in the background.",
                    "s",
                    *spread("galvatron_train_checkpoint_duration_seconds", "$__range", of=THIS, together="max"),
                    width=8,
                    height=8,
                ),
            ),
        ),
    ),
)
