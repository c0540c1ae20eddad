"""Programs that mean harm: each is refused with one line or opens as what it says, runs nothing, and costs little."""

import pytest

from tests.files.hostile_process import outcomes_of, refuse_harm
from tests.files.hostile_programs import GENERATORS, TARGETS


@pytest.fixture(scope="module")
def process(tmp_path_factory):
    return outcomes_of("tests.files.hostile_programs", tmp_path_factory.mktemp("hostile"))


@pytest.mark.parametrize("generator", GENERATORS, ids=lambda generator: generator.__name__)
def test_hostile_programs_do_nothing_but_what_operators_do(generator, process):
    refuse_harm(process[0][generator.__name__], process[1])
    outcomes = {name: outcome for name, (outcome, _, _) in process[0][generator.__name__]["outcomes"].items()}
    if generator.__name__ == "texts":
        assert {outcomes[f"{target}, {level} deep"][0] for target in TARGETS for level in range(3)} == {"refused"}
