"""Candidates on one line, for reports."""

from galvatron_planner.plan import StagePlan, summarize_strategies
from galvatron_planner.search.joint import Candidate
from galvatron_planner.search.report import Alternative


def alternative(candidate: Candidate) -> Alternative:
    """Write a candidate for a report."""
    stages = " | ".join(summarize_strategies(StagePlan(layers=stage)) for stage in candidate.stages)
    return Alternative(
        pipeline_degree=len(candidate.stages),
        global_batch_size=candidate.split.global_batch_size,
        num_micro_batches=candidate.split.num_micro_batches,
        step_seconds=candidate.estimate.step_seconds,
        samples_per_second=candidate.estimate.samples_per_second,
        peak_bytes=candidate.estimate.peak_bytes,
        summary=f"pp{len(candidate.stages)} m{candidate.split.num_micro_batches}: {stages}",
    )
