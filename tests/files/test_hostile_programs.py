"""Programs that mean harm: each is refused with one line or opens as what it says, runs nothing, and costs little."""

import pytest

from bayesify.errors import FileRefusedError
from bayesify.files.load_model import load_model
from tests.files.hostile_process import outcomes_of, refuse_harm
from tests.files.hostile_programs import GENERATORS, foreign, nested


@pytest.fixture(scope="module")
def process(tmp_path_factory):
    return outcomes_of("tests.files.hostile_programs", tmp_path_factory.mktemp("hostile"))


@pytest.mark.parametrize("generator", GENERATORS, ids=lambda generator: generator.__name__)
def test_hostile_programs_do_nothing_but_what_operators_do(generator, process):
    refuse_harm(process[0][generator.__name__], process[1])


@pytest.mark.parametrize("level", range(3))
@pytest.mark.parametrize("target", foreign())
def test_what_is_no_operator_is_refused_in_branches_too(target, level, file, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileRefusedError, match="not an operator that programs may call"):
        load_model(file(nested(level, foreign()[target])))
    assert not (tmp_path / "ran").exists()
