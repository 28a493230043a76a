"""The metrics of training: one table, read from what the ranks of a pod reported when the scrape comes.

Only the supervisor opens a port, one per pod. A metric of the whole job reads the same in every pod (take ``max`` over
pods, never ``sum``); a metric of a rank carries its local rank and stage. Who scrapes adds pod and namespace.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import assert_never

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from galvatron_planner.catalogue import reported_device
from galvatron_runtime.reports import DURATION_BOUNDS, Durations, RankReport, TrainingFigures


class MetricType(StrEnum):
    """How a metric may move."""

    GAUGE = "gauge"
    COUNTER = "counter"
    HISTOGRAM = "histogram"


class Scope(StrEnum):
    """What a metric speaks about, and thereby its labels."""

    JOB = "job"
    """The whole job; no labels, equal in every pod."""
    RANK = "rank"
    """One rank of this pod; labels ``local_rank`` and ``stage``."""


@dataclass(frozen=True, slots=True)
class MetricRow:
    """One row of the table.

    Attributes:
        name: as exported; a counter's ends in ``_total``.
        type: how it may move.
        unit: base unit, or empty for a plain number.
        scope: the whole job or one rank.
        help: for the person who reads the dashboard.
        read: the value in a rank's report, or None while there is none.
    """

    name: str
    type: MetricType
    unit: str
    scope: Scope
    help: str
    read: Callable[[RankReport], float | Durations | None]


def scrape(reports: Sequence[RankReport]) -> bytes:
    """Write the metrics of a pod in the format that ``prometheus_client.CONTENT_TYPE_LATEST`` names.

    Before the first step, and while measuring, there are names and help texts but no samples.
    """
    registry = CollectorRegistry()
    registry.register(_PodCollector(tuple(report for report in reports if report.training)))
    return generate_latest(registry)


def peak_flops(device_name: str) -> float | None:
    """Dense BF16 peak of one device, or None when the catalogue has none."""
    device = reported_device(device_name)
    return None if device is None else device.bf16


@dataclass(frozen=True, slots=True)
class _PodCollector(Collector):
    """The samples of one scrape, as prometheus_client asks for them."""

    reports: tuple[RankReport, ...]

    def collect(self) -> Iterable[Metric]:
        """Yield every row of the table, with the samples that there are."""
        return (_family(row, self.reports) for row in METRICS)


def _family(row: MetricRow, reports: Sequence[RankReport]) -> Metric:
    labels = ["local_rank", "stage"] if row.scope is Scope.RANK else []
    family = _empty_family(row, labels)
    for report in reports if row.scope is Scope.RANK else reports[:1]:
        value = row.read(report)
        stage = report.training.stage if report.training else 0
        values = [str(report.local_rank), str(stage)] if labels else []
        if isinstance(family, HistogramMetricFamily) and isinstance(value, Durations):
            buckets = [(str(bound), float(n)) for bound, n in zip(DURATION_BOUNDS, value.at_most, strict=True)]
            family.add_metric(values, [*buckets, ("+Inf", float(value.count))], value.total_seconds)
        elif isinstance(family, GaugeMetricFamily | CounterMetricFamily) and isinstance(value, int | float):
            family.add_metric(values, value)
    return family


def _empty_family(row: MetricRow, labels: list[str]) -> GaugeMetricFamily | CounterMetricFamily | HistogramMetricFamily:
    match row.type:
        case MetricType.GAUGE:
            return GaugeMetricFamily(row.name, row.help, labels=labels)
        case MetricType.COUNTER:
            return CounterMetricFamily(row.name, row.help, labels=labels)
        case MetricType.HISTOGRAM:
            return HistogramMetricFamily(row.name, row.help, labels=labels)
        case _:
            assert_never(row.type)


def _figure(
    read: Callable[[TrainingFigures], float | Durations | None],
) -> Callable[[RankReport], float | Durations | None]:
    """Read what only training ranks report."""
    return lambda report: None if report.training is None else read(report.training)


def _flops_utilization(report: RankReport) -> float | None:
    """Model FLOPs per second over the peak of all devices (Chowdhery et al. 2022, arXiv 2204.02311, appendix B)."""
    if report.training is None or report.progress.samples_per_second is None:
        return None
    peak = peak_flops(report.training.device_name)
    if peak is None:
        return None
    flops_per_second = report.training.model_flops_per_sample * report.progress.samples_per_second
    return flops_per_second / (peak * report.training.num_devices)


def _counter(name: str, help_text: str, read: Callable[[TrainingFigures], float | None]) -> MetricRow:
    """A row for something of the whole job that is counted from the start of the attempt."""
    return MetricRow(f"galvatron_train_{name}", MetricType.COUNTER, "", Scope.JOB, help_text, _figure(read))


def _gauge(name: str, unit: str, help_text: str, read: Callable[[RankReport], float | Durations | None]) -> MetricRow:
    """A row for something of the whole job."""
    return MetricRow(f"galvatron_train_{name}", MetricType.GAUGE, unit, Scope.JOB, help_text, read)


def _histogram(name: str, help_text: str, read: Callable[[TrainingFigures], Durations]) -> MetricRow:
    """A row for durations of something of the whole job, from the start of the attempt."""
    figures = _figure(read)
    return MetricRow(f"galvatron_train_{name}", MetricType.HISTOGRAM, "seconds", Scope.JOB, help_text, figures)


def _rank_counter(name: str, help_text: str, read: Callable[[TrainingFigures], float | None]) -> MetricRow:
    """A row for something of one rank that is counted from the start of the attempt."""
    return MetricRow(f"galvatron_train_{name}", MetricType.COUNTER, "", Scope.RANK, help_text, _figure(read))


def _rank_gauge(name: str, unit: str, help_text: str, read: Callable[[TrainingFigures], float | None]) -> MetricRow:
    """A row for something of one rank."""
    return MetricRow(f"galvatron_train_{name}", MetricType.GAUGE, unit, Scope.RANK, help_text, _figure(read))


METRICS: tuple[MetricRow, ...] = (
    _counter("steps_total", "Optimizer steps finished in this attempt.", lambda t: t.steps),
    _counter("samples_total", "Samples trained on in this attempt.", lambda t: t.samples),
    _counter("tokens_total", "Tokens trained on in this attempt.", lambda t: t.tokens),
    _gauge("attempt", "", "Attempt of the job that this pod works on.", lambda r: r.attempt),
    _gauge("step", "", "Last finished optimizer step of the job.", lambda r: r.progress.step),
    _gauge("target_steps", "", "Optimizer steps that the job is to make.", lambda r: r.progress.total_steps),
    _gauge("loss", "", "Mean cross entropy per token of the last step.", lambda r: r.progress.loss),
    _gauge(
        "gradient_norm", "", "Global gradient norm of the last step, before clipping.",
        _figure(lambda t: t.gradient_norm),
    ),
    _gauge(
        "step_duration_seconds", "seconds", "Duration of a step, median over recent steps.",
        lambda r: r.progress.step_seconds,
    ),
    _gauge(
        "samples_per_second", "", "Throughput of the whole job over recent steps, in samples.",
        lambda r: r.progress.samples_per_second,
    ),
    _gauge(
        "tokens_per_second", "", "Throughput of the whole job over recent steps, in tokens.",
        lambda r: r.progress.tokens_per_second,
    ),
    _gauge(
        "predicted_step_seconds", "seconds", "Duration of a step that the plan predicts.",
        _figure(lambda t: t.predicted_step_seconds),
    ),
    _gauge(
        "flops_utilization_ratio", "ratio",
        "Model FLOPs utilization: FLOPs of the model per second over the dense BF16 peak of all devices."
        " Absent for devices of unknown peak.",
        _flops_utilization,
    ),
    _gauge(
        "last_step_timestamp_seconds", "seconds", "Unix time at the end of the last step.",
        _figure(lambda t: t.last_step_timestamp_seconds),
    ),
    _gauge(
        "last_checkpoint_step", "", "Step of the newest complete training checkpoint, 0 for none.",
        lambda r: r.progress.last_checkpoint_step,
    ),
    _histogram("step_seconds", "Durations of the steps of this attempt.", lambda t: t.step_durations),
    _histogram(
        "checkpoint_duration_seconds",
        "Durations of the training checkpoints of this attempt, from the wish to the last byte.",
        lambda t: t.checkpoint_durations,
    ),
    _rank_gauge(
        "memory_peak_bytes", "bytes", "Peak device memory of the rank since the training began.",
        lambda t: t.peak_bytes,
    ),
    _rank_gauge(
        "predicted_memory_bytes", "bytes", "Peak device memory that the plan predicts for the rank's stage.",
        lambda t: t.predicted_peak_bytes,
    ),
    _rank_counter(
        "stage_busy_seconds_total", "Passes of the rank's stage on this device, with the collectives inside them.",
        lambda t: t.busy_seconds,
    ),
    _rank_counter(
        "stage_wait_seconds_total", "Waiting of the rank for other stages.",
        lambda t: t.wait_seconds,
    ),
    _rank_gauge(
        "bubble_ratio", "ratio", "Waiting for other stages over computing and waiting, last step.",
        lambda t: t.bubble_ratio,
    ),
)  # fmt: skip
"""THE TABLE of metrics; docs/monitoring.md, the dashboards and the alerts are checked against it."""
