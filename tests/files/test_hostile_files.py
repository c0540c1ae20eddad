"""Thousands of hostile and damaged files: each is refused with one line, runs nothing, and costs little."""

import pytest

from tests.files.hostile_files import GENERATORS
from tests.files.hostile_process import outcomes_of, refuse_harm

# What opens because nothing is wrong with it: a value that may be stored, at a place where it means nothing.
MAY_OPEN = {"rules", "streams"}


@pytest.fixture(scope="module")
def process(tmp_path_factory):
    return outcomes_of("tests.files.hostile_files", tmp_path_factory.mktemp("hostile"))


@pytest.mark.parametrize("generator", GENERATORS, ids=lambda generator: generator.__name__)
def test_hostile_files_are_refused_and_do_nothing(generator, process):
    told, left = process[0][generator.__name__], process[1]
    refuse_harm(told, left)
    if generator.__name__ not in MAY_OPEN:
        assert [name for name, (outcome, _, _) in told["outcomes"].items() if outcome[0] == "opened"] == []
