"""Start this node's ranks: torchrun's agent, with ranks that are forked from one process that has imported torch.

    python -m galvatron_runtime.launch TORCHRUN-OPTIONS -m MODULE ARGUMENTS

torchrun itself starts every rank as a new interpreter, and each of them imports torch and this package: seconds of
every core before anything happens. Here a fork server imports them once, while this process imports the agent; ranks
come from it within milliseconds (docs/adr/0028-forked-ranks.md). Everything else is torchrun's: options, rendezvous,
environment of the ranks, watching and stopping them.

Where the supervisor keeps a spare of this process for the attempt after the current one, it is told to begin by its
standard input, when all of that is loaded.
"""

import logging
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from multiprocessing import forkserver, set_forkserver_preload

from galvatron_runtime.processes import name_process
from galvatron_runtime.spare import SPARE_VARIABLE

_GUARD = "galvatron_runtime.fork_server"
_LATE = "torch._dynamo"
"""What torch 2.13 imports at the first step of an optimizer: 0.45 s of a core in every rank."""


def run_rank(module: str, arguments: Sequence[str]) -> None:
    """Be a rank: run a module's ``main``."""
    # What ps(1) and top(1) show; the command line stays that of the fork server.
    name_process(f"rank-{os.environ['RANK']}")
    import_module(module).main(arguments)


def main(arguments: Sequence[str]) -> None:
    """Start ranks and wait until all have ended."""
    options, module, rest = split(arguments)
    # As torchrun does, but before the libraries that read it are loaded.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    set_forkserver_preload([_GUARD, module, _LATE])
    forkserver.ensure_running()
    # Not at the top: the fork server imports this module as well, and starts before this process imports torch.
    from torch.distributed import run
    from torch.distributed.launcher.api import elastic_launch

    keep_compiler_out_of_logs()
    parsed = run.parse_args([*options, "--start-method", "forkserver", "-m", module])  # type: ignore[no-untyped-call]
    config, _, _ = run.config_from_args(parsed)
    if os.environ.pop(SPARE_VARIABLE, None) is not None and not os.read(sys.stdin.fileno(), 1):
        sys.exit("a spare that was not needed")
    elastic_launch(config, run_rank)(module, rest)


def keep_compiler_out_of_logs() -> None:
    """Take torch's own formatter from the logs of this process.

    For a record with an exception, as of a rank that has failed, that of torch 2.13 imports the whole of
    ``torch._dynamo``: 2.5 s of a core before anybody learns of the failure.
    """
    plain = logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
    for name in [name for name in logging.root.manager.loggerDict if name.partition(".")[0] == "torch"]:
        for handler in logging.getLogger(name).handlers:
            handler.setFormatter(plain)


def split(arguments: Sequence[str]) -> tuple[Sequence[str], str, Sequence[str]]:
    """Tell torchrun's options, the module and its arguments apart; ends the process where there is no module."""
    place = arguments.index("-m") + 1 if "-m" in arguments else len(arguments)
    if place >= len(arguments):
        sys.exit("usage: python -m galvatron_runtime.launch TORCHRUN-OPTIONS -m MODULE ARGUMENTS")
    return arguments[: place - 1], main_of(arguments[place]), arguments[place + 1 :]


def main_of(module: str) -> str:
    """Name the module that is run: of a package that within it; ends the process where there is none."""
    found = find_spec(module)
    if found is None:
        sys.exit(f"there is no module {module}")
    return module if found.submodule_search_locations is None else f"{module}.__main__"


if __name__ == "__main__":
    main(sys.argv[1:])
