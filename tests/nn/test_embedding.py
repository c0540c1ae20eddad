"""Embedding and EmbeddingBag: one draw of each row that an example looks up, and no other row."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

import bayesify
from bayesify.distributions.posterior import Parameterization, Scale
from bayesify.distributions.prior import Normal
from bayesify.errors import NothingToConvertError
from bayesify.nn.settings import Method
from tests.support import METHODS, PARAMETERIZATIONS, judge_moments, noisy, quiet, variational

IDS = torch.tensor([[1, 2, 1, 0], [3, 1, 5, 3], [2, 2, 0, 0]])


def _draws(layer: nn.Module, count: int, *args: Any) -> Tensor:
    with torch.no_grad():
        return torch.stack([layer(*args) for _ in range(count)]).double()


def _covariance(plain: nn.Module, layer: Any, *args: Any) -> Tensor:
    """Of the outputs, if one draw of the table served the whole batch."""
    wide, weight = copy.deepcopy(plain).double(), layer.weight.detach().double()

    def output(given: Tensor) -> Tensor:
        return functional_call(wide, {"weight": given}, args).flatten()

    of_weight = torch.autograd.functional.jacobian(output, weight).flatten(1)  # type: ignore[no-untyped-call]
    std = layer.weight_std.detach().double()
    if plain.padding_idx is not None:
        std = std.index_fill(0, torch.tensor(plain.padding_idx), 0)
    scaled = of_weight * std.flatten()
    return scaled @ scaled.T


def _planned(model: nn.Module, method: str, targets: list[str]) -> dict[str, Any]:
    rows = bayesify.plan(model, {"method": method, "rules": [{"targets": targets}]}).rows
    return {row.name: row for row in rows}


def _within(example_of: Tensor) -> Tensor:
    return example_of[:, None] == example_of[None, :]


@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS)
@pytest.mark.parametrize("padding_idx", [None, 0])
@pytest.mark.parametrize("rows", [7, 40])  # fewer, and more, than are looked up
def test_an_example_sees_one_draw_of_each_row(
    parameterization: Parameterization, padding_idx: int | None, rows: int
) -> None:
    plain = nn.Embedding(rows, 2, padding_idx).double()
    layer = variational(plain, "flipout", noisy(parameterization))
    examples = torch.arange(3).repeat_interleave(8)
    expected = _covariance(plain, layer, IDS) * _within(examples)
    assert expected.count_nonzero() > len(expected)  # positions of one example share rows
    judge_moments(_draws(layer, 4000, IDS), plain(IDS).detach(), expected)


def test_examples_may_stand_along_another_dimension() -> None:
    plain = nn.Embedding(7, 2).double()
    layer = variational(plain, "flipout", noisy(batch_dim=1))
    examples = torch.arange(3).repeat_interleave(2).repeat(4)
    expected = _covariance(plain, layer, IDS.T) * _within(examples)
    judge_moments(_draws(layer, 4000, IDS.T), plain(IDS.T).detach(), expected)


def test_lrt_draws_each_element_that_is_looked_up() -> None:
    plain = nn.Embedding(7, 2).double()
    layer = variational(plain, "lrt", noisy())
    judge_moments(_draws(layer, 4000, IDS), plain(IDS).detach(), _covariance(plain, layer, IDS).diagonal().diag())


_FLAT, _OFFSETS = torch.tensor([1, 2, 1, 3, 1, 0, 2]), torch.tensor([0, 3, 3, 5])
BAGS: dict[str, tuple[dict[str, Any], tuple[Any, ...]]] = {
    "matrix": ({}, (IDS,)),
    "sum": ({"mode": "sum"}, (IDS,)),
    "max": ({"mode": "max"}, (torch.tensor([[1, 1], [2, 2], [3, 3]]),)),
    "offsets": ({}, (_FLAT, _OFFSETS)),
    "last offset": ({"mode": "sum", "include_last_offset": True}, (_FLAT, torch.tensor([0, 3, 3, 7]))),
    "padding": ({"padding_idx": 1}, (_FLAT, _OFFSETS)),
    "padded sum": ({"mode": "sum", "padding_idx": 1}, (IDS,)),
    "weights": ({"mode": "sum"}, (IDS, None, torch.linspace(-1, 1, 12).view(3, 4).double())),
    "weights, offsets": ({"mode": "sum", "padding_idx": 2}, (_FLAT, _OFFSETS, torch.linspace(-1, 1, 7).double())),
}


@pytest.mark.parametrize("case", BAGS)
def test_a_bag_sees_one_draw_of_each_row(case: str) -> None:
    options, args = BAGS[case]
    plain = nn.EmbeddingBag(7, 2, **options).double()
    layer = variational(plain, "flipout", noisy())
    bags = torch.arange(len(plain(*args))).repeat_interleave(2)
    # the maximum of equal rows is that row, so that its Jacobian is exact too
    judge_moments(
        _draws(layer, 4000, *args), plain(*args).detach(), _covariance(plain, layer, *args) * _within(bags)
    )


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
@pytest.mark.parametrize("padding_idx", [None, 2])
def test_without_noise_the_bags_are_the_plain_layers(mode: Any, padding_idx: int | None) -> None:
    plain = nn.EmbeddingBag(7, 3, mode=mode, padding_idx=padding_idx)
    layer = variational(plain, "flipout")
    layer.set_std("weight", 1e-30)
    empty = (torch.tensor([2, 2]), torch.tensor([0, 2])), (_FLAT[:0], torch.tensor([0]))
    for args in ((IDS,), (_FLAT, _OFFSETS), *empty):
        torch.testing.assert_close(layer(*args), plain(*args))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("cls", [nn.Embedding, nn.EmbeddingBag])
class TestBoth:
    def test_quiet_is_the_plain_layer(self, method: Method, cls: Any) -> None:
        plain = cls(7, 4)
        layer = variational(plain, method)
        with quiet(layer):
            assert torch.equal(layer(IDS), plain(IDS))
        assert not torch.equal(layer(IDS), layer(IDS))
        output, kl = layer(IDS, return_kl=True)
        assert output.shape == plain(IDS).shape
        assert torch.equal(kl, layer.kl_divergence())

    def test_only_rows_that_are_looked_up_get_gradient(self, method: Method, cls: Any) -> None:
        layer = variational(cls(7, 4, padding_idx=0), method)
        layer(IDS).square().sum().backward()
        for parameter in layer.parameters():
            assert parameter.grad.abs().sum(1).ne(0).tolist() == [False, True, True, True, False, True, False]

    def test_the_padding_row_has_no_kl_and_no_draw(self, method: Method, cls: Any) -> None:
        layer = variational(cls(7, 4, padding_idx=2), method, noisy(prior=Normal("pretrained", Scale("constant", 0.7))))
        q = torch.distributions.Normal(layer.weight, layer.weight_std)
        p = torch.distributions.Normal(layer.weight_prior_mean, 0.7)
        kept = torch.arange(7) != 2
        torch.testing.assert_close(layer.kl_divergence(), torch.distributions.kl_divergence(q, p)[kept].sum())
        assert (layer.draw("weight") == layer.weight).all(1).tolist() == (~kept).tolist()

    @pytest.mark.parametrize("way", ["compile", "vmap", "weights_only"])
    def test_works_where_the_plain_layer_does(self, method: Method, cls: Any, way: str) -> None:
        layer = variational(cls(40, 4), method)
        if way == "compile":
            torch.manual_seed(1)
            assert torch.compile(layer, backend="aot_eager", fullgraph=True)(IDS).shape == layer(IDS).shape
        elif way == "vmap":
            drawn = vmap(lambda _: layer(IDS), randomness="different")(torch.empty(3))
            assert not torch.equal(drawn[0], drawn[1])
        else:
            file = io.BytesIO()
            torch.save(layer, file)
            file.seek(0)
            assert torch.load(file, weights_only=True).weight_rho.equal(layer.weight_rho)

    def test_sparse_gradients_stay_sparse(self, method: Method, cls: Any) -> None:
        layer = variational(cls(7, 4, sparse=True), method)
        layer(IDS).sum().backward()
        assert all(parameter.grad.is_sparse for parameter in layer.parameters())

    def test_it_converts_only_where_a_rule_names_it_or_its_class(self, method: Method, cls: Any) -> None:
        model = nn.Sequential(nn.ModuleDict({"table": cls(7, 4), "fc": nn.Linear(4, 4)}))
        for targets in (["**"], ["0"], ["first"], ["0.tab*", "0.fc"]):
            rows = _planned(model, method, targets)
            assert (rows["0.table"].verb, rows["0.fc"].verb) == ("keeps", "converts"), targets
            assert "only where a rule names it" in rows["0.table"].reason
        assert next(iter(bayesify.plan(model, method).rows)).verb == "keeps"
        for target in ("0.table", cls.__name__, f"type:torch.nn.{cls.__name__}"):
            rows = _planned(model, method, [target])
            assert (rows["0.table"].verb, rows["0.fc"].verb) == ("converts", "keeps"), target
            assert any("looked-up" in note for note in rows["0.table"].notes) is (method == "lrt")
        assert isinstance(bayesify.flipout(cls(7, 4)), cls)  # the layer itself is named enough

    def test_max_norm_is_blocked(self, method: Method, cls: Any) -> None:
        with pytest.raises(NothingToConvertError, match="max_norm rewrites the rows"):
            bayesify.convert(nn.Sequential(cls(7, 4, max_norm=1.0)), {"method": method, "rules": [{"targets": ["0"]}]})


def test_scale_grad_by_freq_divides_by_how_often_a_row_is_looked_up() -> None:
    torch.manual_seed(3)
    gradients = []
    for scaled in (False, True):
        torch.manual_seed(4)
        layer = variational(nn.Embedding(40, 4, scale_grad_by_freq=scaled), "flipout", uneven=False)
        torch.manual_seed(5)
        layer(IDS).sum().backward()
        gradients.append(layer.weight_rho.grad)
    counts = IDS.flatten().bincount(minlength=40).clamp_min(1).unsqueeze(1)
    torch.testing.assert_close(gradients[1] * counts, gradients[0])
