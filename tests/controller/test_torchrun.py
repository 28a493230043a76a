import argparse
from dataclasses import replace
from pathlib import Path, PurePosixPath

import pytest

import builders
from galvatron_operator import torchrun
from galvatron_operator.torchrun import Launch, WhenFinished
from galvatron_planner.cluster import DeviceKind

POD = Launch(
    module=torchrun.TRAIN_MODULE,
    arguments=torchrun.training_arguments(plan_path="/plan.json", training_path="/training.json"),
    cluster=builders.cluster(4, num_nodes=2),
    node_rank="1",
    master_address="job-0.job",
    master_port=29500,
    run_id="uid-3",
    attempt=3,
    supervisor_port=9464,
    run_directory="/run/galvatron",
    when_finished=WhenFinished.PARK,
    shutdown_timeout_seconds=40,
    termination_log="/dev/termination-log",
)


def understood_by_torchrun(launch: Launch) -> argparse.Namespace:
    run = pytest.importorskip("torch.distributed.run")
    python, flag, module, *options = torchrun.torchrun_command(launch)
    assert (python, flag, module) == ("python", "-m", "galvatron_runtime.launch")
    parsed: argparse.Namespace = run.parse_args(options)
    return parsed


@pytest.mark.slow
def test_torchrun_understands_every_option() -> None:
    options = understood_by_torchrun(POD)
    assert (options.nnodes, options.node_rank, options.nproc_per_node) == ("2", 1, "2")
    assert (options.rdzv_backend, options.rdzv_id) == ("static", "uid-3")
    assert (options.master_addr, options.master_port) == ("job-0.job", 29500)
    assert (options.max_restarts, options.shutdown_timeout) == (0, 40)
    assert (options.module, options.training_script) == (True, "galvatron_runtime.train")
    assert options.training_script_args == ["--plan", "/plan.json", "--training", "/training.json"]


@pytest.mark.parametrize("when_finished", WhenFinished)
def test_the_supervisor_understands_every_option(when_finished: WhenFinished) -> None:
    supervisor = pytest.importorskip("galvatron_runtime.supervisor")
    launch = replace(POD, when_finished=when_finished)
    task = supervisor.parse_arguments(torchrun.supervisor_command(launch)[3:])
    assert (task.attempt, task.node_rank, task.port) == (3, 1, 9464)
    assert task.wait_for == "job-0.job"
    assert task.when_finished.value == when_finished.value
    assert task.command == torchrun.torchrun_command(launch)


def test_the_supervisor_follows_the_attempt_in_a_file(tmp_path: Path) -> None:
    supervisor = pytest.importorskip("galvatron_runtime.supervisor")
    file = tmp_path / "attempt"
    file.write_text("7")
    launch = replace(POD, attempt=PurePosixPath(file), run_id="uid-{attempt}")
    task = supervisor.parse_arguments(torchrun.supervisor_command(launch)[3:])
    assert (task.attempt, task.attempt_file) == (7, file)


def test_ranks_get_their_time_before_torchrun_and_torchrun_before_the_supervisor() -> None:
    supervisor = pytest.importorskip("galvatron_runtime.supervisor")
    task = supervisor.parse_arguments(torchrun.supervisor_command(POD)[3:])
    assert task.grace_seconds > POD.shutdown_timeout_seconds


def test_another_attempt_has_another_rendezvous() -> None:
    command = torchrun.torchrun_command(POD)
    again = torchrun.torchrun_command(replace(POD, run_id="uid-4", attempt=4))
    assert command != again


def test_a_single_node_waits_for_no_name() -> None:
    alone = replace(POD, cluster=builders.cluster(4), master_address=torchrun.LOOPBACK)
    assert "--wait-for" not in torchrun.supervisor_command(alone)


def test_a_local_run_answers_on_the_loopback_interface_only() -> None:
    local = replace(POD, supervisor_address=torchrun.LOOPBACK)
    command = torchrun.supervisor_command(local)
    assert command[command.index("--address") + 1] == "127.0.0.1"


def test_a_cpu_device_is_one_core_that_gives_its_memory_back() -> None:
    variables = torchrun.environment(POD)
    assert variables["OMP_NUM_THREADS"] == "1"
    assert {"MALLOC_ARENA_MAX", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"} <= variables.keys()


def test_gpus_keep_the_threads_and_the_allocator_of_the_system() -> None:
    gpus = replace(POD, cluster=builders.cluster(4, num_nodes=2, device_kind=DeviceKind.CUDA))
    assert torchrun.environment(gpus) == {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
