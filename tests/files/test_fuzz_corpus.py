"""What the guided fuzzer kept: files that together reach what its files reached, each opened or refused, quickly."""

import zipfile
from pathlib import Path

import fuzz_files
import pytest

CORPUS = Path(__file__).with_name("fuzz_corpus.zip")


@pytest.mark.usefixtures("vision")
def test_each_opens_or_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(CORPUS) as corpus:
        contents = {name: corpus.read(name) for name in corpus.namelist()}
    assert len(contents) > 50
    problems = {name: fuzz_files.problem(tmp_path, content) for name, content in contents.items()}
    assert {name: problem for name, problem in problems.items() if problem} == {}
