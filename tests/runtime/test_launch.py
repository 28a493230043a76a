"""How ranks are started; that they live, stop and die as they should is shown by the tests of training."""

import subprocess
import sys

import pytest

from galvatron_runtime import launch


@pytest.mark.parametrize("arguments", [[], ["--nproc-per-node", "2"], ["--nproc-per-node", "2", "-m"]])
def test_a_command_line_without_a_module_is_refused(arguments: list[str]) -> None:
    with pytest.raises(SystemExit, match="usage: "):
        launch.main(arguments)


def test_a_module_that_does_not_exist_is_refused_before_anything_starts() -> None:
    with pytest.raises(SystemExit, match=r"no module galvatron_runtime\.trian"):
        launch.main(["-m", "galvatron_runtime.trian"])


def test_of_a_package_its_main_module_is_run() -> None:
    assert launch.main_of("galvatron_runtime.measure") == "galvatron_runtime.measure.__main__"
    assert launch.main_of("galvatron_runtime.train") == "galvatron_runtime.train"
    assert "galvatron_runtime.fork_server" not in sys.modules


def test_a_failure_is_logged_without_importing_a_compiler() -> None:
    script = """
import logging, sys, torch
from galvatron_runtime.launch import keep_compiler_out_of_logs
keep_compiler_out_of_logs()
log = logging.getLogger("torch.distributed.elastic.multiprocessing.api")
try:
    raise RuntimeError("it broke")
except RuntimeError:
    log.exception("failed")
assert "torch._dynamo" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "RuntimeError: it broke" in done.stderr
