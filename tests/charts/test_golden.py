"""The chart renders what was reviewed."""

import pytest

from charts import golden

pytestmark = pytest.mark.helm


@pytest.mark.parametrize("case", golden.CASES)
def test_the_chart_renders_what_was_reviewed(case: str) -> None:
    assert golden.text(case) == (golden.DIRECTORY / f"{case}.yaml").read_text(), (
        "look at the change, then `make goldens`"
    )


def test_every_golden_file_belongs_to_a_case() -> None:
    assert {path.stem for path in golden.DIRECTORY.iterdir()} == set(golden.CASES)
