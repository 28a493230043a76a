"""``galvatron run --plan``: a plan that the user brings, without a cluster."""

from pathlib import Path

import pytest

import builders
from controller.bodies import job
from galvatron_operator import local
from galvatron_operator.rundirectory import RunDirectory
from galvatron_planner.errors import InvalidInput, InvalidPlan
from galvatron_planner.plan import Plan
from galvatron_planner.worker import Progress

WITHOUT_MEASURING = {
    "spec.budget.resourceName": "cpu",
    "spec.training.precision": "FP32",
    "spec.profiling": {"policy": "Never", "device": "cpu-core"},
}


class Silence:
    """The port ``Listener``."""

    def start(self, phase: str, detail: str) -> None:
        """Nothing."""

    def progress(self, progress: Progress) -> None:
        """Nothing."""

    def end(self, detail: str) -> None:
        """Nothing."""


def test_the_plan_that_is_brought_becomes_the_plan_of_the_run(tmp_path: Path) -> None:
    wanted, files = job(WITHOUT_MEASURING), RunDirectory(tmp_path)
    brought = builders.plan("tp2-dp2", spec=wanted.model, on=wanted.cluster)
    planned = local.plan(wanted, files, port=0, listener=Silence(), fixed=brought)
    assert planned.plan.stages == brought.stages
    assert Plan.from_json(files.plan.read_text()) == planned.plan


def test_a_plan_that_splits_tokens_is_priced_without_being_asked_for(tmp_path: Path) -> None:
    wanted, files = job(WITHOUT_MEASURING), RunDirectory(tmp_path)
    assert not wanted.limits.sequence_parallel
    brought = builders.plan("sptp2-dp2", spec=wanted.model, on=wanted.cluster)
    planned = local.plan(wanted, files, port=0, listener=Silence(), fixed=brought)
    assert planned.plan.stages == brought.stages


def test_a_plan_for_another_model_is_refused(tmp_path: Path) -> None:
    wanted = job(WITHOUT_MEASURING)
    brought = builders.plan("dp4", on=wanted.cluster)
    with pytest.raises(InvalidPlan, match="another model"):
        local.plan(wanted, RunDirectory(tmp_path), port=0, listener=Silence(), fixed=brought)


def test_a_job_with_a_config_map_for_its_plan_says_what_to_do_without_one(tmp_path: Path) -> None:
    wanted = job(WITHOUT_MEASURING | {"spec.search": {"algorithm": "Fixed", "fixedPlanRef": {"name": "mine"}}})
    with pytest.raises(InvalidInput, match="galvatron run --plan"):
        local.plan(wanted, RunDirectory(tmp_path), port=0, listener=Silence())
