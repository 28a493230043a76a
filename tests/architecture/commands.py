"""``docs/commands.md``: the commands ``galvatron`` and ``kubectl galvatron``, as their ``--help`` tells them.

``make reference`` writes it anew, after a change of a command.
"""

from collections.abc import Iterator
from typing import Any

from typer.main import get_command

from architecture.reference import ROOT
from galvatron_operator import cli, plugin

DOCUMENT = ROOT / "docs" / "commands.md"

_INTRODUCTION = """\
# Commands

Every command with its options, as `--help` tells them; written by `make reference`. What is wrong is told in two lines,
problem and what to do, with exit code 1. What has no default may be left out, unless it is *required*.
"""
_HEAD = "| argument | meaning | default |\n|---|---|---|"


def commands() -> str:
    """Write the document."""
    apps = {"galvatron": cli.app, "kubectl galvatron": plugin.app}
    return "\n".join([_INTRODUCTION, *(part for name, app in apps.items() for part in _of(get_command(app), name, 2))])


def _of(command: Any, name: str, level: int) -> Iterator[str]:
    """Write a command, and below it those that it leads."""
    yield f"{'#' * level} {name}\n\n{_told(command.help)}\n"
    rows = [_row(parameter) for parameter in command.params if parameter.name != "help"]
    if rows:
        yield "\n".join([_HEAD, *rows, ""])
    for child_name, child in getattr(command, "commands", {}).items():
        yield from _of(child, f"{name} {child_name}", level + 1)


def _row(parameter: Any) -> str:
    """Write what is typed, what it means, and what is taken without it."""
    is_option = parameter.param_type_name == "option"
    written = (
        ", ".join((*parameter.opts, *parameter.secondary_opts))
        if is_option
        else parameter.metavar or parameter.name.upper()
    )
    default = "*required*" if parameter.required else ""
    if parameter.default is not None and parameter.default is not False and parameter.default != "":
        default = f"`{getattr(parameter.default, 'value', parameter.default)}`"
    return f"| `{written}` | {_told(parameter.help)} | {default} |"


def _told(text: str) -> str:
    """Keep paragraphs, and what a table or a tag would take for its own."""
    return text.strip().replace("|", "\\|").replace("<", "\\<")


if __name__ == "__main__":
    DOCUMENT.write_text(commands())
