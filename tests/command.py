"""The command ``galvatron`` as a process, for the tests that meet it as its users do."""

import os
import subprocess
import sys
from pathlib import Path

GALVATRON = (sys.executable, "-m", "galvatron_operator.cli")


def galvatron(*arguments: str | Path, folder: Path, timeout: int = 400) -> "subprocess.CompletedProcess[str]":
    """Run the command to its end."""
    return subprocess.run(
        [*GALVATRON, *map(str, arguments)],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**os.environ, "COLUMNS": "200"},
    )
