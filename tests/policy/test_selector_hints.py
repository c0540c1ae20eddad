"""What is said of a selector that does not fit the model, and what its author is told to write."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

from .test_rule_matching import BLOCKED, owners, problems, rules

MISFITS: list[tuple[dict[str, Any], str]] = [
    (rules(["conv2"]), "rule 1: target 'conv2' matches no module. 2 modules end in '.conv2'; write '**.conv2'."),
    (rules(["0.bn1", "fc"]), "1 module ends in '.0.bn1'; write '**.0.bn1'."),
    (rules(["conv?"]), "4 modules match further down; write '**.conv?'."),
    (rules(["Conv2D"]), "rule 1: target 'Conv2D' matches no module. Did you mean 'Conv2d'?"),
    (rules(["layr1"]), "target 'layr1' matches no module. Did you mean 'layer1'?"),
    (rules(["lsat"]), "Did you mean 'last'?"),
    (rules(["model.fc"]), "target 'model.fc' matches no module. Did you mean 'fc'?"),
    (rules(["lay.*conv2"]), "It looks like a regular expression; write 're:lay.*conv2'."),
    (rules(["Conv1d"]), "target 'Conv1d' matches no layer; this model's are Conv2d, BatchNorm2d, NonDyn"),
    (rules(["type:torch.nn.Linaer"]), "target 'type:torch.nn.Linaer' matches no layer"),
    (rules(["type:Linaer"]), "Did you mean 'Linear'?"),
    (rules(["BatchNorm2d"]), "BatchNorm2d is a class of this model's, but none that converts."),
    (rules(["re:conv2"]), "target 're:conv2' matches no module."),
    (rules(["layer1.0.bn1"]), "'layer1.0.bn1' matches 1 module with weights, but none can be converted (BatchN"),
    (rules(["**.bn1"]), "matches 2 modules with weights, but none can be converted (2 BatchNorm2d)."),
    (rules(["re:.*bn1"]), "matches 2 modules with weights, but none can be converted (2 BatchNorm2d)."),
    (rules(["**.relu"]), "target '**.relu' matches 2 modules, but nothing in it has weights that could convert."),
    (rules(["attn"]), f"(NonDynamicallyQuantizableLinear: {BLOCKED['attn.out_proj']})."),
    (rules(["attn.out_proj"]), f"target 'attn.out_proj' cannot be converted: {BLOCKED['attn.out_proj']}."),
    (rules(["re:attn\\.out_.*"]), f"cannot be converted: {BLOCKED['attn.out_proj']}."),
    ({"ignore": ["conv2"]}, "ignore 'conv2' matches no module. 2 modules end in '.conv2'; write '**.conv2'."),
    (rules({"targets": ["fc"], "ignore": ["stme"]}), "rule 1: ignore 'stme' matches no module. Did you mean 'stem'?"),
    (rules(["Conv2d"], ["layer1"]), "rule 2: can never apply: all 4 layers that it selects are taken by earlier"),
    (rules(["**"], ["first"]), "rule 2: can never apply: the 1 layer that it selects is taken by earlier"),
    (rules(["fc"], ["stem"], ignore=["fc"]), "rule 1: can never apply: the 1 layer that it selects is taken"),
    (rules({"targets": ["layer1"], "ignore": ["Conv2d"]}, ["fc"]), "all 4 layers that it selects are taken by its own"),
    (rules({"name": "a", "targets": ["fc"]}, ["head"]), "rule 2: claims 'head.out', the very layer that 'a' "),
    (rules({"name": "a", "targets": ["fc"]}, ["head", "stem"]), "the very layer that 'a' claims as 'fc'; name both"),
]  # fmt: skip


@pytest.mark.parametrize(("data", "says"), MISFITS, ids=[str(index) for index in range(len(MISFITS))])
def test_a_misfit_is_told_once_with_what_to_write(data, says) -> None:
    found = [problem for problem in problems(data) if says in problem]
    others = [problem for problem in problems(data) if "can never apply" not in problem and says not in problem]
    assert len(found) == 1
    assert not others


def test_all_misfits_come_at_once_in_the_order_of_their_lines(tmp_path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text(
        "ignore:\n  - stme\nrules:\n  - targets:\n      - conv2\n      - fc\n  - {targets: [last, attn.out_proj]}\n"
    )
    assert [problem.split(": ")[0] for problem in problems(path)] == [
        "line 2", "rule 1 (line 5)", "rule 2 (line 7)", "rule 2 (line 7)",
    ]  # fmt: skip


class Confusing(nn.Module):
    """Modules that are called like a class and like a position."""

    def __init__(self) -> None:
        super().__init__()
        self.Linear = nn.Conv1d(2, 2, 1)
        self.last = nn.ModuleDict({"Conv1d": nn.Linear(2, 2)})
        self.end = nn.Linear(2, 2)


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("Linear", "'Linear' is a class and a module's name: write 'type:Linear' or 're:Linear'."),
        (
            "last",
            "'last' is the last layer that could convert, and a module's name too: write 'last.**' for the module",
        ),
    ],
)
def test_a_word_that_could_be_two_things_is_refused_with_both_ways_to_write_it(word, says) -> None:
    assert says in problems(rules([word], ["end"]), Confusing())[0]
    assert says in problems({"ignore": [word]}, Confusing())[0]


def test_the_ways_to_write_it_work() -> None:
    assert set(owners(rules(["type:Linear"]), Confusing())) == {"last.Conv1d", "end"}
    assert set(owners(rules(["re:Linear"]), Confusing())) == {"Linear"}
    assert set(owners(rules(["last.**"]), Confusing())) == {"last.Conv1d"}
    assert set(owners(rules(["Conv1d"]), Confusing())) == {"Linear"}
