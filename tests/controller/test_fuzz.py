"""Whatever a GalvatronJob says, the operator goes on: it refuses with a remedy, or works, and then is quiet."""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from controller.bodies import Body, Changes, job_body
from fuzzing.bodies import RIGHT, Fuzzed, fuzzed
from fuzzing.running import End, Verdict, run
from fuzzing.schema import SPEC, Schema
from fuzzing.values import BY_PATTERN
from galvatron_operator.api import parse
from galvatron_operator.api.status import MAX_MESSAGE
from galvatron_planner.errors import InvalidInput

SEED = 6
NUMBER = 150
"""The thousand of `python -m benchmarks.fuzz` take a minute."""
REMEDY = re.compile(r"^(spec|metadata)[.\w\[\]/ ]* .+; .+", re.DOTALL)
"""A field, what is wrong with it, and what to do."""


@dataclass(frozen=True, slots=True)
class Ended:
    """A job and what became of it."""

    job: Fuzzed
    end: End | None
    error: str = ""

    def __str__(self) -> str:
        return f"{self.job.changes}: {self.error or self.end}"


@pytest.fixture(scope="module")
def ended() -> tuple[Ended, ...]:
    print(f"seed {SEED}, {NUMBER} jobs")
    return tuple(end_of(job) for job in fuzzed(SEED, NUMBER))


def end_of(job: Fuzzed) -> Ended:
    try:
        return Ended(job, run(job.body))
    except Exception as error:  # noqa: BLE001 -- any is a finding, and the others are wanted too
        return Ended(job, None, f"{type(error).__name__}: {error}")


def with_verdict(ended: tuple[Ended, ...], *verdicts: Verdict) -> Iterator[tuple[Ended, str]]:
    for one in ended:
        if one.end is not None and one.end.verdict in verdicts:
            yield one, one.end.message


def test_no_job_stops_the_operator_or_keeps_it_busy(ended: tuple[Ended, ...]) -> None:
    assert [str(one) for one in ended if one.error] == []


def test_a_job_that_is_not_accepted_says_which_field_and_what_to_do(ended: tuple[Ended, ...]) -> None:
    messages = list(with_verdict(ended, Verdict.NOT_ACCEPTED))
    assert [str(one) for one, message in messages if not REMEDY.match(message)] == []
    # A message that is cut has lost its remedy.
    assert all(len(message) < MAX_MESSAGE for _, message in messages)


def test_a_job_that_fails_or_waits_says_why(ended: tuple[Ended, ...]) -> None:
    assert [str(one) for one, message in with_verdict(ended, Verdict.FAILED, Verdict.WAITING) if not message] == []


def test_the_jobs_are_of_every_sort(ended: tuple[Ended, ...]) -> None:
    verdicts = Counter(one.end.verdict for one in ended if one.end is not None)
    assert verdicts[Verdict.REFUSED] < 0.6 * NUMBER
    assert verdicts[Verdict.COMPLETE] > 0.2 * NUMBER
    assert verdicts[Verdict.NOT_ACCEPTED] > 0.1 * NUMBER
    assert verdicts[Verdict.WAITING] > 0


def test_reading_a_job_raises_nothing_but_a_refusal(ended: tuple[Ended, ...]) -> None:
    refusals = [refusal_of(one.job.body) for one in ended]
    assert all(refusal.remedy for refusal in refusals if refusal is not None)


def refusal_of(body: Body) -> InvalidInput | None:
    try:
        parse(body)
    except InvalidInput as error:
        return error
    return None


def test_a_seed_draws_the_same_jobs_again() -> None:
    assert list(fuzzed(1, 20)) == list(fuzzed(1, 20))
    assert list(fuzzed(1, 20)) != list(fuzzed(2, 20))


@pytest.mark.parametrize("changes", RIGHT, ids=lambda changes: ", ".join(changes) or "nothing")
def test_what_changes_begin_with_is_right(changes: Changes) -> None:
    assert run(job_body(changes)).verdict not in (Verdict.REFUSED, Verdict.NOT_ACCEPTED)


def test_every_pattern_of_the_schema_has_texts_that_match_and_texts_that_do_not() -> None:
    assert set(patterns(SPEC)) == BY_PATTERN.keys()
    for pattern, texts in BY_PATTERN.items():
        assert {bool(re.fullmatch(pattern, text)) for text in texts} == {True, False}, pattern


def patterns(schema: Schema) -> Iterator[str]:
    if "pattern" in schema:
        yield schema["pattern"]
    for child in schema.get("properties", {}).values():
        yield from patterns(child)
    if isinstance(schema.get("items"), dict):
        yield from patterns(schema["items"])


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ({"spec.budget.costPerGPUHour": "9" * 32}, Verdict.COMPLETE),
        ({"spec.training.gradientClipNorm": "1e400"}, Verdict.REFUSED),
        ({"spec.training.gradientClipNorm": "9" * 28 + "e99"}, Verdict.COMPLETE),
        ({"spec.training.optimizer": {"weightDecay": "1e400"}}, Verdict.REFUSED),
        ({"spec.model.depths": []}, Verdict.REFUSED),
        ({"spec.budget": None}, Verdict.REFUSED),
        ({"spec.lifecycle": None}, Verdict.COMPLETE),
    ],
    ids=str,
)
def test_what_once_stopped_the_operator_no_longer_does(changes: Changes, verdict: Verdict) -> None:
    assert run(job_body(changes)).verdict is verdict


@pytest.mark.parametrize("sources", [None, 1, [1], ["serviceAccountToken"], [None]], ids=repr)
def test_sources_of_a_volume_that_are_none_are_refused_with_a_remedy(sources: object) -> None:
    template = {"spec": {"volumes": [{"name": "all", "projected": {"sources": sources}}]}}
    end = run(job_body({"spec.runtime": {"template": template}}))
    assert end.verdict is Verdict.NOT_ACCEPTED
    assert end.message.startswith("spec.runtime.template.spec.volumes[0].projected.sources")


def test_a_huge_wrong_value_leaves_room_for_the_remedy() -> None:
    end = run(job_body({"spec.runtime": {"template": {"spec": "x" * 100_000}}}))
    assert end.verdict is Verdict.NOT_ACCEPTED
    assert end.message.endswith("kubectl explain gvj.spec.runtime.template.spec says what it takes")


def test_a_name_that_goes_on_in_another_line_is_refused() -> None:
    refusal = refusal_of(job_body({"metadata.name": "job\n"}))
    assert refusal is not None
    assert refusal.problem.startswith("metadata.name")
