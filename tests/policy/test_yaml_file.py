"""YAML policies: numbers and texts by YAML 1.2, lines in every message, and files that are refused."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bayesify.distributions.posterior import Scale
from bayesify.errors import PolicyError, UsageError
from bayesify.policy import yaml_file as policy_file
from bayesify.policy.policy import Policy


@pytest.fixture
def problems(tmp_path):
    """What is said about a policy text."""

    def read(content: str | bytes) -> tuple[str, ...]:
        path = tmp_path / "policy.yaml"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        with pytest.raises(PolicyError) as caught:
            Policy.from_yaml(path)
        assert caught.value.source == str(path)
        return caught.value.problems

    return read


@pytest.mark.parametrize(
    ("written", "number"),
    [
        ("1e-3", 1e-3),
        ("1E-3", 1e-3),
        ("0.001", 1e-3),
        (".5", 0.5),
        ("012", 12.0),
        ("3", 3.0),
        ("0x10", 16.0),
        ("+1.5e+2", 150.0),
    ],
)
def test_numbers_are_those_of_yaml_1_2(written, number, tmp_path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text(f"posterior: {{init_std: {written}}}")
    assert Policy.from_yaml(path).posterior.init_std == Scale("constant", number)


def test_texts_are_those_of_yaml_1_2(tmp_path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text("rules: [{name: off, targets: [no, yes, 1:20, 2001-01-01, '0', =]}]")
    (rule,) = Policy.from_yaml(path).rules
    assert (rule.name, rule.targets) == ("off", ("no", "yes", "1:20", "2001-01-01", "0", "="))


def test_a_byte_order_mark_windows_lines_and_json_are_read(tmp_path) -> None:
    path = tmp_path / "policy.json"
    path.write_bytes(b'\xef\xbb\xbf{"method": "lrt",\r\n "rules": [{"targets": ["fc"]}]}\r\n')
    assert Policy.from_yaml(path).rules[0].targets == ("fc",)


def test_every_problem_is_told_with_its_rule_and_line(problems) -> None:
    text = """\
metod: lrt
posterior:
  init_std: -1
rules:
  - name: one
    targets: [fc]
    target: [fc]
  - targets:
      - ok
      - re:(
    prior: {pi: 0.5}
    prior: {std: 1}
ignore: [*.conv]
"""
    assert [problem.split(": ")[0] for problem in problems(text)] == [
        "line 1", "line 3", "rule 1 'one' (line 7)", "rule 2 (line 10)", "rule 2 (line 11)", "rule 2 (line 12)",
        "line 13",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "the file is empty"),
        ("# only a comment\n", "the file is empty"),
        ("---\n", "nothing is not a mapping"),
        ("flipout", "'flipout' is not a mapping"),
        ("- method: lrt", "is not a mapping"),
        ("method: lrt\nbias: variational\nmethod: lrt", "line 3: key 'method' appears twice, first on line 1."),
        ("rules: [{targets: [a], targets: [b]}]", "rule 1 (line 1): key 'targets' appears twice, first on line 1."),
        ("ignore: [**.fc]", "line 1: quote patterns that start with *"),
        ("ignore: [*]", "line 1: quote patterns that start with *"),
        ("ignore:\n  - *.fc", "line 2: quote patterns that start with *"),
        ("ignore: [[ab]*]", "line 1: quote patterns that start with * or ["),
        ("*.fc: 1", "line 1: quote patterns that start with *"),
        ("method: &m lrt", "line 1: anchors are not allowed: &m."),
        ("&m method: lrt", "line 1: anchors are not allowed: &m."),
        ("prior: &p {std: 1}", "line 1: anchors are not allowed: &p."),
        ("method: !!str lrt", "line 1: tags are not allowed"),
        ("method: !!python/object/apply:os.system [ls]", "line 1: tags are not allowed"),
        ("<<: {method: lrt}", "line 1: unknown key '<<'."),
        ("? [a]\n: 1", "line 1: a key must be a single word"),
        ("method: lrt\n---\nmethod: lrt", "line 2: a second document; a policy is one"),
        ("%YAML 1.1\n---\nmethod: lrt", "policies are YAML 1.2"),
        ("method: 'lrt", "line 1: found unexpected end of stream: a quote or a bracket is never closed"),
        ("method: lrt\nignore: [a,\n", "a quote or a bracket is never closed"),
        ("method: a: b", "line 1: mapping values are not allowed here: quote a value that has ': ' in it"),
        ("method: lrt\n\tbias: x", "line 2: found character '\\t' that cannot start any token"),
        ("method: @x", "line 1: found character '@' that cannot start any token: quote the value"),
        ("method: \x00", "not YAML: unacceptable character"),
        (b"method: lrt\nbias: \xff", "line 2: the file is not UTF-8 text"),
        ("method: lrt".encode("utf-16"), "line 1: the file is not UTF-8 text"),
        ("rules:", "line 1: rules: nothing is not a list."),
        ("posterior: {init_std: " + "1" * 5000 + "}", "is not a number."),
        ("posterior: {init_std: 1e999}", "inf is not a positive finite number."),
        ("[" * 100_000, "line 1: nested too deeply"),
        ("{a: " * 100_000, "line 1: nested too deeply"),
        ("#" + "x" * 2**20, "a policy may have 1 MiB at most"),
    ],
)
def test_a_file_that_is_no_policy_is_refused_in_one_line(content, says, problems) -> None:
    (problem,) = problems(content)
    assert says in problem
    assert "\n" not in problem
    assert len(problem) < 250


def test_a_file_of_one_mebibyte_is_still_read(tmp_path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text("method: lrt\n".ljust(2**20, "#"))
    assert Policy.from_yaml(path).method == "lrt"


def test_a_folder_and_an_impossible_path_are_refused(tmp_path) -> None:
    for path in (tmp_path, "a\0b"):
        with pytest.raises(UsageError, match="the policy cannot be read"):
            Policy.from_yaml(path)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.text(st.sampled_from("abc:{}[]-*&!|>'\"#%@ \n\t01.,?"), max_size=40))
def test_any_text_is_read_or_refused_as_a_policy_error(tmp_path_factory, text) -> None:
    path = tmp_path_factory.getbasetemp() / "junk.yaml"
    path.write_text(text)
    with contextlib.suppress(PolicyError):
        Policy.from_yaml(path)


def test_presets_are_found_beside_the_package_and_inside_a_wheel(tmp_path, monkeypatch) -> None:
    assert set(policy_file.presets()) == {"flipout", "lora", "lrt", "moped", "last-layer", "sparse", "scratch"}
    installed = tmp_path / "site-packages" / "bayesify"
    (installed / "configs").mkdir(parents=True)
    (installed / "configs" / "mine.yaml").write_text("method: lrt")
    monkeypatch.setattr(policy_file, "__file__", str(installed / "policy" / "yaml_file.py"))
    assert policy_file.presets() == {"mine": installed / "configs" / "mine.yaml"}
    assert Policy.parse("mine").method == "lrt"
    (installed / "configs" / "mine.yaml").unlink()
    (installed / "configs").rmdir()
    assert policy_file.presets() == {}
    assert Policy.parse("lrt").method == "lrt"


def test_a_preset_comes_before_a_file_of_its_name_and_a_path_object_is_always_a_file(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("moped").write_text("method: keep")
    assert Policy.parse("moped").method == "flipout"
    assert Policy.parse(Path("moped")).method == "keep"
    assert Policy.parse("./moped").source == "./moped"


FRAGMENTS = [
    "a: 1\n", "b: [1, 'x', off, 1e-3]\n", "  - c: {d: e, f: .5}\n", "rules:\n", "  - targets: ['*.x']\n", "    x: *y\n",
    "k: &a b\n", "# c\n", "s: |\n  text\n  more\n", "t: !x 1\n", "\t", "'", "{", "}", "[a:b]\n", "? q\n", "- 1\n",
    "--- \n", "...\n", "%YAML 1.2\n---\n", "a: \u00e9\n", "z: 0o7\n", "y: yes\n", "n: ~\n", "q: \"x\\ty\"\n",
    "l: >-\n  fold\n  it\n", "u: http://x:1\n", "a:b\n", "x: a, b\n", "\x00", "\ufeff", "\x85", "\u2028",
]  # fmt: skip


@settings(max_examples=400, deadline=None)
@example("a:b\n\t")
@given(st.lists(st.sampled_from(FRAGMENTS), max_size=8).map("".join))
def test_libyaml_reads_what_the_python_scanner_reads(text):
    pytest.importorskip("_ruamel_yaml")
    quick = policy_file._read_by_libyaml(text)
    if quick is not None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(policy_file, "_read_by_libyaml", lambda text: None)
            data, origin, problems = policy_file.read_yaml(text, "policy.yaml")
        assert (repr(data), origin.lines, problems) == (repr(quick[0]), quick[1], [])
