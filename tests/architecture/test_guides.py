"""The guides name nothing that does not exist, and leave out no reason that a job can show."""

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml

from architecture.reference import DOCUMENT, PARTS, ROOT, field_at, reference, schema
from galvatron_operator import cli, decide, plugin
from galvatron_operator.api import ConditionType, FailureReason, Phase, parse
from galvatron_operator.api.status import FIRST_REASONS
from galvatron_operator.decide import SearchProblem
from galvatron_operator.failures import REACTIONS, Action
from galvatron_planner.strategy import Dimension

GUIDES = [ROOT / "README.md", *sorted({*(ROOT / "docs").glob("*.md")} - {DOCUMENT})]
USER_GUIDE = ROOT / "docs" / "user-guide.md"

WORDS_OF_OTHERS = {
    *("True", "Ready", "DisruptionTarget", "Failed", "FailureTarget", "Running"),
    *("Situation", "Normal", "Warning", "CapacityLost", "CapacityReturned", "NoSmallerPlan"),
    *decide.__all__,
    *(kind.value for kind in decide.Kind),
    "Traceback",
}
"""Words in the sources of ``decide`` that are no reasons: of Kubernetes, of other fields, and names in Python."""


def first_cells(marker: str) -> list[str]:
    """Read what stands as code in the rows of a marked table, up to the cell that explains it."""
    text = USER_GUIDE.read_text()
    table = text.partition(f"<!-- {marker}:begin -->\n")[2].partition(f"<!-- {marker}:end -->")[0]
    rows = [line.split(" | ") for line in table.splitlines()[2:]]
    return [word for cells in rows for word in re.findall(r"`([^`]+)`", cells[-2] if marker == "reasons" else cells[0])]


def reasons_of_conditions() -> set[str]:
    """Find every word in the sources of ``decide`` that looks like a reason."""
    sources = Path(decide.__file__).parent.glob("*.py")
    nodes = (node for path in sources for node in ast.walk(ast.parse(path.read_text())))
    texts = {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    words = {text for text in texts if re.fullmatch(r"([A-Z][a-z]+)+", text)}
    return {*words, *SearchProblem, *(reason for _, reason in FIRST_REASONS.values())} - WORDS_OF_OTHERS


def commands() -> Iterator[tuple[str, list[str]]]:
    """Find every call of our commands in the guides, with the document it stands in."""
    for document in GUIDES:
        text = document.read_text().replace("\\\n", "")
        for line in re.findall(r"(?:^\$ |^|`)((?:kubectl )?galvatron .+)", text, flags=re.MULTILINE):
            call = line.partition("`")[0].partition(" | ")[0].partition("  #")[0]
            yield document.name, shlex.split(call)


def blocks() -> Iterator[tuple[str, dict[str, Any]]]:
    """Find every piece of a job in the guides."""
    for document in GUIDES:
        for text in re.findall(r"^```yaml\n(.*?)^```", document.read_text(), flags=re.MULTILINE | re.DOTALL):
            found = yaml.safe_load(text)
            if "spec" in found:
                yield document.name, found


def paths(node: dict[str, Any], path: str) -> Iterator[str]:
    for name, child in node.get("properties", {}).items():
        yield f"{path}.{name}"
        yield from paths(child, f"{path}.{name}")
    if "items" in node:
        yield from paths(node["items"], f"{path}[]")


def unknown_fields(written: object, path: str) -> Iterator[str]:
    if isinstance(written, dict) and "additionalProperties" not in (field_at(path) or {}):
        for key, value in written.items():
            yield from unknown_fields(value, f"{path}.{key}")
    elif isinstance(written, list):
        for value in written:
            yield from unknown_fields(value, path)
    elif field_at(path) is None:
        yield path


def test_the_reference_is_that_of_the_crd() -> None:
    assert DOCUMENT.read_text() == reference(), "run `make reference`"


def test_the_reference_holds_every_field() -> None:
    written = set(re.findall(r"^(?:\| `|##+ )([\w.\[\]]+)", DOCUMENT.read_text(), flags=re.MULTILINE))
    known = {path for part in PARTS for path in paths(schema()["properties"][part], part)}
    assert len(known) > 200
    assert known <= written


@pytest.mark.parametrize("document", GUIDES, ids=lambda path: path.name)
def test_every_field_that_a_guide_names_exists(document: Path) -> None:
    named = re.findall(r"\b((?:spec|status)(?:\.[a-z]\w*(?:\[\])?)+)", document.read_text())
    assert not [path for path in named if field_at(path) is None]


def test_every_piece_of_a_job_has_known_fields_only() -> None:
    found = list(blocks())
    assert len(found) > 5
    for document, piece in found:
        assert not list(unknown_fields(piece["spec"], "spec")), document


def test_every_whole_job_of_a_guide_is_accepted() -> None:
    whole = [piece for _, piece in blocks() if "apiVersion" in piece]
    assert whole
    for job in whole:
        parse(job).check_for_cluster()


def test_every_command_of_a_guide_exists_with_its_options() -> None:
    groups = {"galvatron": typer.main.get_command(cli.app), "kubectl": typer.main.get_command(plugin.app)}
    called = list(commands())
    assert {call[0] for _, call in called} == set(groups)
    for document, call in called:
        command, rest = groups[call[0]], call[1:] if call[0] == "galvatron" else call[2:]
        while hasattr(command, "commands"):
            assert rest[0] in command.commands, f"{document}: {call}"
            command, rest = command.commands[rest[0]], rest[1:]
        options = {option for parameter in command.params for option in parameter.opts}
        # `prepare` hands its options on to another program.
        if not command.context_settings.get("ignore_unknown_options"):
            assert {word for word in rest if word.startswith("-")} <= options, f"{document}: {call}"


def test_every_target_of_make_that_a_guide_names_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    for document in [*GUIDES, ROOT / "CONTRIBUTING.md", ROOT / "CONVENTIONS.md"]:
        for words in re.findall(r"(?:^\$ |`)make ((?:[a-z-]+ ?)+)", document.read_text(), flags=re.MULTILINE):
            assert set(words.split()) <= targets, document.name


@pytest.mark.parametrize("document", GUIDES, ids=lambda path: path.name)
def test_every_value_of_the_chart_that_a_guide_names_exists(document: Path) -> None:
    values = yaml.safe_load((ROOT / "charts" / "galvatron-operator" / "values.yaml").read_text())
    text = document.read_text()
    named = [*re.findall(r"`(\w+(?:\.\w+)+)`", text), *re.findall(r"--set ([\w.]+)=", text)]
    for path in (path.split(".") for path in named):
        if path[0] in values and path[-1] != "py":
            found = values
            for part in path:
                assert part in found, ".".join(path)
                found = found[part]


def test_the_guide_lists_every_failure_and_every_reason() -> None:
    assert set(first_cells("failures")) == set(FailureReason)
    listed = set(first_cells("reasons"))
    assert listed - set(FailureReason) == reasons_of_conditions() - set(FailureReason)


def test_the_guide_says_what_follows_each_failure() -> None:
    words = {
        Action.RESTART: "counts",
        Action.RESTART_UNCOUNTED: "free",
        Action.REPLAN: "another plan",
        Action.FAIL: "never",
    }
    guide = USER_GUIDE.read_text()
    for reason, reaction in REACTIONS.items():
        assert f"| `{reason}` | {words[reaction.action]}" in guide


def test_the_guide_lists_every_phase_condition_column_and_strategy() -> None:
    crd = yaml.safe_load((ROOT / "crds" / "galvatronjobs.yaml").read_text())
    columns = [column["name"] for column in crd["spec"]["versions"][0]["additionalPrinterColumns"]]
    assert set(first_cells("columns")) == set(columns)
    assert first_cells("phases") == list(Phase)
    assert first_cells("conditions") == list(ConditionType)
    assert set(first_cells("strategies")) == {*Dimension, "ckpt", "single"}
