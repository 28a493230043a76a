"""The table of metrics, and what a scrape makes of reports."""

import re

import pytest
from prometheus_client.parser import text_string_to_metric_families

from galvatron_planner.worker import Progress
from galvatron_runtime.metrics import METRICS, MetricType, peak_flops, scrape
from galvatron_runtime.reports import Durations, RankReport
from rank_reports import report


def samples(*reports: RankReport) -> dict[tuple[str, str], float]:
    """Values by name and local rank."""
    families = text_string_to_metric_families(scrape(reports).decode())
    return {(s.name, s.labels.get("local_rank", "")): s.value for family in families for s in family.samples}


def test_names_and_units_follow_the_rules_of_prometheus() -> None:
    for row in METRICS:
        assert re.fullmatch(r"galvatron_train_[a-z_]+", row.name)
        assert row.name.endswith("_total") == (row.type is MetricType.COUNTER)
        assert row.name.endswith(row.unit)
        assert row.help.endswith(".")
    assert len({row.name for row in METRICS}) == len(METRICS)


def test_the_job_is_counted_once_however_many_ranks_report() -> None:
    values = samples(report(0), report(1))
    assert values["galvatron_train_samples_total", ""] == 80
    assert values["galvatron_train_attempt", ""] == 2
    assert values["galvatron_train_last_checkpoint_step", ""] == 20


def test_memory_is_told_per_rank_beside_its_prediction() -> None:
    values = samples(report(0, peak_bytes=5), report(1, peak_bytes=7))
    assert values["galvatron_train_memory_peak_bytes", "1"] == 7
    assert values["galvatron_train_predicted_memory_bytes", "1"] == 6


def test_durations_become_a_cumulative_histogram() -> None:
    durations = Durations().with_one(0.04).with_one(0.1).with_one(5000.0)
    plain = report(0)
    assert plain.training is not None
    told = plain.model_copy(update={"training": plain.training.model_copy(update={"step_durations": durations})})
    families = text_string_to_metric_families(scrape((told, told)).decode())
    (family,) = (family for family in families if family.name == "galvatron_train_step_seconds")
    counts = {s.labels["le"]: s.value for s in family.samples if s.name.endswith("_bucket")}
    # A bound belongs to its bucket.
    assert (counts["0.02"], counts["0.05"], counts["0.1"], counts["1000.0"], counts["+Inf"]) == (0, 1, 2, 2, 3)
    assert sum(s.value for s in family.samples if s.name.endswith("_sum")) == pytest.approx(5000.14)


def test_flops_utilization_is_absent_for_devices_of_unknown_peak() -> None:
    assert ("galvatron_train_flops_utilization_ratio", "") not in samples(report(0))


def test_flops_utilization_is_model_flops_over_the_peak_of_all_devices() -> None:
    # By hand: 16 samples/s at 312 TFLOP each are 4992 TFLOP/s, of 8 A100 at 312 TFLOP/s = 2496: a factor of 2.
    values = samples(report(0, device_name="NVIDIA A100-SXM4-80GB"))
    assert values["galvatron_train_flops_utilization_ratio", ""] == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("device_name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA A10", 125e12),
        ("NVIDIA A100-PCIE-40GB", 312e12),
        ("NVIDIA A10G", None),
        ("x86_64", None),
    ],
)
def test_a_device_is_found_by_the_beginning_of_its_name(device_name: str, peak: float | None) -> None:
    assert peak_flops(device_name) == peak


def test_nothing_is_sampled_before_the_first_report_or_while_measuring() -> None:
    measuring = RankReport(attempt=0, rank=0, local_rank=0, progress=Progress(activity="m", step=1, total_steps=2))
    assert samples() == samples(measuring) == {}
