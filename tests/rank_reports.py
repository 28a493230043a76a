"""Reports of training ranks, as the runtime leaves them."""

from galvatron_planner.worker import Progress
from galvatron_runtime.reports import RankReport, TrainingFigures


def report(local_rank: int, *, device_name: str = "x86_64", peak_bytes: int = 5) -> RankReport:
    """What rank ``4 + local_rank`` reports in the middle of a job."""
    return RankReport(
        attempt=2,
        rank=4 + local_rank,
        local_rank=local_rank,
        progress=Progress(
            activity="training",
            step=30,
            total_steps=100,
            loss=2.5,
            step_seconds=0.5,
            samples_per_second=16.0,
            tokens_per_second=256.0,
            last_checkpoint_step=20,
        ),
        training=TrainingFigures(
            stage=local_rank // 2,
            device_name=device_name,
            num_devices=8,
            steps=10,
            samples=80,
            tokens=1280,
            last_step_timestamp_seconds=1.7e9,
            gradient_norm=0.7,
            bubble_ratio=0.25,
            busy_seconds=30.0,
            wait_seconds=10.0,
            model_flops_per_sample=312 * 10**12,
            peak_bytes=peak_bytes,
            predicted_step_seconds=0.4,
            predicted_peak_bytes=6,
        ),
    )
