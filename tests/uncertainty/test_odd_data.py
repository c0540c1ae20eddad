"""Data and outputs as they come: not finite, empty, wrongly labelled, of another dtype or device."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bayesify
from bayesify.errors import UsageError


class Spoiled(nn.Module):
    """Its output for the first example is this number."""

    def __init__(self, number: float) -> None:
        super().__init__()
        self.linear, self.number = nn.Linear(4, 3), number

    def forward(self, x: Tensor) -> Tensor:
        first = (torch.arange(len(x)) == 0).unsqueeze(1)
        return torch.where(first, self.number, self.linear(x))


def network(outputs: int = 3) -> Any:
    return bayesify.convert(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, outputs)), "flipout").eval()


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_stays_in_its_own_example(number: float) -> None:
    model, x = bayesify.convert(Spoiled(number), "flipout").eval(), torch.randn(5, 4)
    prediction = bayesify.predict(model, x)
    expected = torch.full((3,), number)
    torch.testing.assert_close(prediction.mean[0], expected, equal_nan=True)
    assert prediction.mean[1:].isfinite().all()
    assert (prediction.std[1:] > 0).all()
    if not math.isnan(number):
        assert (prediction.std[0] == 0).all()
    with pytest.raises(UsageError, match="not finite"):
        bayesify.calibrate(model, [(x, torch.zeros(5, dtype=torch.long))], task="classification")


def test_a_masked_class_is_never_predicted_and_may_be_calibrated() -> None:
    """Logits of -inf, as a mask over the answers that do not apply."""

    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x).masked_fill(torch.tensor([False, False, True]), -math.inf)

    model, x = bayesify.convert(Masked(), "flipout").eval(), torch.randn(50, 4)
    found = bayesify.calibrate(model, [(x, torch.randint(2, (50,)))], task="classification", samples=4)
    assert math.isfinite(found.scores[3].nll)
    prediction = bayesify.predict(model, x, task="classification")
    assert (prediction.mean[:, 2] == 0).all()
    assert prediction.total.isfinite().all()


def test_an_output_without_elements_is_passed_on() -> None:
    class WithNothing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.linear(x), x.new_zeros(len(x), 0)

    prediction = bayesify.predict(bayesify.convert(WithNothing(), "flipout").eval(), torch.randn(5, 4))
    assert prediction.mean[1].shape == (5, 0)


def test_data_without_a_target_are_refused() -> None:
    x, none = torch.randn(6, 4), torch.full((6,), -100)
    for call in (bayesify.calibrate, bayesify.fit_std):
        for data in ([(x, none)], [(x[:0], none[:0])]):
            with pytest.raises(UsageError, match="no target"):
                call(network(), data, task="classification")
        with pytest.raises(UsageError, match="no batch"):
            call(network(), [], task="classification")


def test_labels_that_do_not_fit_are_named() -> None:
    model, x, labels = network(), torch.randn(20, 4), torch.randint(3, (20,))
    wrong = [
        (labels.where(torch.arange(20) > 4, 255), "from 0 to 255.*-100"),
        (labels - 1, "from -1 to 1"),
        (nn.functional.one_hot(labels), "argmax"),
        (torch.rand(20, 3), "soft labels"),
        (labels.tolist(), "a list"),
    ]
    for targets, words in wrong:
        with pytest.raises(UsageError, match=words):
            bayesify.calibrate(model, [(x, targets)], task="classification")
    segments = bayesify.convert(nn.Sequential(nn.Conv2d(1, 3, 3, padding=1)), "flipout").eval()
    maps = [(torch.randn(2, 1, 5, 5), torch.randint(3, (2, 5, 5)))]
    with pytest.raises(UsageError, match="say dim=1"):
        bayesify.calibrate(segments, maps, task="classification")
    assert bayesify.calibrate(segments, maps, task="classification", dim=1, samples=2).conformal is not None


def test_whole_numbers_may_be_the_targets_of_a_regression() -> None:
    x, counts = torch.randn(40, 4), torch.randint(5, (40,))
    found = bayesify.calibrate(network(1), [(x, counts)], task="regression", samples=2)
    assert isinstance(found.noise, float)
    with pytest.raises(UsageError, match="targets are not finite"):
        bayesify.calibrate(network(1), [(x, torch.full((40,), math.nan))], task="regression")


def test_labels_of_nothing_count_for_nothing_in_fit_std() -> None:
    """Padding moves neither the axes nor the curvature."""
    model, other = network(), network()
    other.load_state_dict(model.state_dict())
    x, labels = torch.randn(4, 6, 4), torch.randint(3, (4, 6))
    padded, ignored = torch.cat([x, 100 * torch.randn(4, 2, 4)], 1), torch.full((4, 2), -100)
    found = bayesify.fit_std(model, [(x, labels)], task="classification", samples=2)
    bayesify.fit_std(other, [(padded, torch.cat([labels, ignored], 1))], task="classification", samples=2)
    basis, spoiled = (one[2].weight_basis for one in (model, other))
    assert found.precision > 0
    torch.testing.assert_close((basis.T @ spoiled).abs(), torch.eye(8), atol=1e-2, rtol=0)


def test_what_lies_elsewhere_or_is_of_another_dtype_is_told() -> None:
    x = torch.randn(3, 4)
    with pytest.raises(UsageError, match="device is cpu, that of the weights meta"):
        bayesify.predict(network().to("meta"), x)
    with pytest.raises(UsageError, match=r"dtype is torch\.float32, that of the weights torch\.bfloat16"):
        bayesify.predict(network().to(torch.bfloat16), x)
    with pytest.raises(RuntimeError, match="shapes"):  # the model's own error is left as it is
        bayesify.predict(network(), x[:, :3])


@pytest.mark.parametrize("margin", [0.5, 2.0])
def test_a_model_that_is_right_on_few_data_is_not_made_sure_of_it(margin: float) -> None:
    """n right of n at one margin: p(wrong)/p(right) = 1/(2n), so that margin/T = log(2n)."""
    model = bayesify.convert(nn.Sequential(nn.Linear(1, 2, bias=False)), "flipout").eval()
    model[0].weight.data = torch.tensor([[0.0], [margin]])
    bayesify.set_posterior_std(model, 1e-6)
    x, count = torch.ones(80, 1), 80
    found = bayesify.calibrate(model, [(x, torch.ones(count, dtype=torch.long))], task="classification", samples=2)
    assert found.temperature == pytest.approx(margin / math.log(2 * count), rel=0.02)
