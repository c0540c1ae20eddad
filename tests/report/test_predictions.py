"""A prediction in a notebook: examples where they are numbers, a summary where they are maps or parts."""

import re

import torch
from torch import nn

import bayesify


class Parts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"<logits>": self.layer(x), "ids": torch.arange(3)}


def rows(html: str) -> list[list[str]]:
    return [re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row) for row in re.findall(r"<tr>(.*?)</tr>", html)]


def test_classes_of_examples() -> None:
    model = bayesify.convert(nn.Sequential(nn.Linear(4, 3)))
    found = bayesify.predict(model, torch.randn(12, 4), task="classification", samples=4)
    head, first, *_ = rows(found._repr_html_())
    assert head == ["", "label", "confidence", "total", "aleatoric", "epistemic"]
    assert first[:2] == ["0", str(int(found.label[0]))]
    assert abs(float(first[2]) - float(found.confidence[0])) < 1e-3


def test_one_number_for_each_example() -> None:
    model = bayesify.convert(nn.Sequential(nn.Linear(4, 1)))
    found = bayesify.predict(model, torch.randn(12, 4), task="regression", noise=0.3, samples=4)
    html = found._repr_html_()
    head, *examples = rows(html)
    assert head == ["", "mean", "std", "total", "aleatoric", "epistemic"]
    assert len(examples) == 10
    assert "and 2 more" in html
    assert abs(float(examples[3][1]) - float(found.mean[3])) < 0.01


def test_parts_by_name() -> None:
    found = bayesify.predict(bayesify.convert(Parts()), torch.randn(5, 4), samples=4)
    html = found._repr_html_()
    assert "mean &lt;logits&gt;" in html
    assert "ids" not in html
    assert rows(html)[1][1] == "(5, 3)"
