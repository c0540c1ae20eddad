"""Text from files: what is shown of it prints, and what is pasted from it is one word."""

import shutil
import subprocess

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from bayesify.errors import BayesifyError, PolicyError
from bayesify.escaping import first_line, printable, shell_word

HOSTILE = "a\x1b[31m\r\nError: b\u202e\x9b\x00"
CLEAN = r"a\x1b[31m\r\nError: b\u202e\x9b\x00"


@example(HOSTILE)
@example("\ud800\U000e0041")
@given(st.text(st.characters(codec=None)))
def test_what_is_shown_prints_and_keeps_what_printed_before(text: str) -> None:
    shown = printable(text)
    assert shown.isprintable()
    assert printable(shown) == shown
    assert shown == text or not text.isprintable()


def test_escapes_are_those_of_python() -> None:
    assert printable(HOSTILE) == CLEAN
    assert printable("größe 層.weight") == "größe 層.weight"
    assert printable("a\nb\tc", keep="\n") == "a\nb\\tc"


def test_errors_escape_what_they_quote_and_have_one_line_or_one_for_each_problem() -> None:
    assert str(BayesifyError("one\n\x1btwo")) == "one\\n\\x1btwo"
    assert str(PolicyError(["a\x1b", "b\nc"], "f\x07")) == "f\\x07: 2 problems\n  - a\\x1b\n  - b\\nc"
    assert str(PolicyError(["a\nb"])) == "a\\nb"


def test_the_first_line_of_another_exception() -> None:
    assert first_line(ValueError("\n one\x1b\ntwo")) == "one\\x1b"
    assert first_line(KeyError()) == "KeyError"


WORDS = ["resnet.pt", "a b", "$(touch pwned)", "it's", "a\nb", "\x1b[31m'\\$(id)", "; rm x", "", "é\x9b", "\udcff`id`"]


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize("word", WORDS)
def test_a_shell_reads_back_the_very_word(word: str) -> None:
    quoted = shell_word(word)
    assert quoted.isprintable()
    ran = subprocess.run(["bash", "-c", f"printf '%s|' {quoted}"], capture_output=True, check=True)
    assert ran.stdout.removesuffix(b"|") == word.encode("utf-8", "surrogateescape")
