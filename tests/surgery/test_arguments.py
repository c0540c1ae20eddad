"""What is passed by mistake is answered with what was meant."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import bayesify
from bayesify.errors import BayesifyError, NameClashError, NoPosteriorError, ShapeError, UsageError


def converted() -> Any:
    return bayesify.convert(nn.Sequential(nn.Linear(2, 2)))


MISTAKES: dict[str, tuple[Callable[[], Any], str]] = {
    "parameters": (lambda: bayesify.param_groups(converted().parameters()), r"pass model, and not model\.parameters"),
    "a list": (lambda: bayesify.param_groups(list(converted().parameters())), r"list was given.*pass model"),
    "None": (lambda: bayesify.kl(None), "None was given"),
    "a path": (lambda: bayesify.kl("net.pt"), r"the path 'net\.pt'.*bayesify\.load"),
    "a state_dict": (lambda: bayesify.reset_posterior(converted().state_dict()), "a dict was given"),
    "a class": (lambda: bayesify.revert(nn.Linear), r"the class Linear.*Linear\(\.\.\.\)"),
    "weights by path": (lambda: bayesify.load_weights(converted(), "sd.pt"), r"torch\.load\('sd\.pt', weights_only"),
    "weights by model": (lambda: bayesify.load_weights(converted(), converted()), r"plain\.state_dict\(\)"),
    "method": (lambda: bayesify.convert(nn.Linear(2, 2), method="lrt"), r"convert\(model, 'lrt'\)"),
    "prior": (lambda: bayesify.convert(nn.Linear(2, 2), prior={"std": 1.0}), r"convert\(model, \{'prior': \.\.\.\}\)"),
    "a typo": (lambda: bayesify.convert(nn.Linear(2, 2), in_place=True), "Did you mean 'inplace'"),
    "forward": (lambda: bayesify.convert(nn.Linear(2, 2), kl_name="forward"), "--kl-name kl_q"),
    "a keyword": (lambda: bayesify.convert(nn.Linear(2, 2), kl_name="class"), "not a name for an attribute"),
    "a near name": (lambda: converted()[0].std_of("wieght"), "Did you mean 'weight'"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_what_was_meant(name: str) -> None:
    call, words = MISTAKES[name]
    with pytest.raises(BayesifyError, match=words):
        call()


def test_errors_are_the_builtin_ones_too() -> None:
    assert issubclass(ShapeError, ValueError)
    assert issubclass(ShapeError, RuntimeError)
    assert issubclass(NoPosteriorError, AttributeError)
    assert issubclass(NameClashError, ValueError)


@pytest.mark.parametrize(
    ("layer", "inputs"),
    [
        (nn.LSTM(2, 3), torch.ones(0, 2, 2)),
        (nn.LSTMCell(2, 3), torch.ones(1, 1, 2)),
        (nn.EmbeddingBag(3, 2), torch.zeros(1, 1, 1, dtype=torch.long)),
    ],
)
def test_what_does_not_fit_a_layer(layer: Any, inputs: Any) -> None:
    with pytest.raises(UsageError):
        bayesify.convert(layer)(inputs)
