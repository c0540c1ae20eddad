"""Held draws: one weight draw for all that happens inside, with its law and its gradients."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bayesify
from bayesify.errors import NotVariationalError, UninitializedLayerError, UsageError
from tests.support import METHODS, covariance, judge_moments

POLICY = {"bias": "variational", "posterior": {"init_std": 0.2}}


class Positions(nn.Module):
    """A weight that a forward transposes, scales and multiplies by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 3))

    def forward(self, x: Tensor) -> Tensor:
        return x @ (self.weight.t() * 0.5)


class Standardizes(nn.Conv1d):
    """A weight that a forward computes with first."""

    def forward(self, input: Tensor) -> Tensor:
        return F.conv1d(input, self.weight / self.weight.norm(), self.bias, padding=self.padding)


LAYERS: dict[str, tuple[nn.Module, Tensor]] = {
    "Linear": (nn.Linear(3, 4), torch.randn(5, 6, 3)),
    "Bilinear": (nn.Bilinear(3, 3, 4), torch.randn(5, 3)),
    "Conv1d": (nn.Conv1d(3, 4, 3, padding=1), torch.randn(5, 3, 6)),
    "ConvTranspose2d": (nn.ConvTranspose2d(3, 4, 3), torch.randn(5, 3, 4, 4)),
    "LSTM": (nn.LSTM(3, 4, 2, batch_first=True, bidirectional=True), torch.randn(5, 6, 3)),
    "GRU": (nn.GRU(3, 4, batch_first=True), torch.randn(5, 6, 3)),
    "RNNCell": (nn.RNNCell(3, 4), torch.randn(5, 3)),
    "MultiheadAttention": (nn.MultiheadAttention(4, 2, batch_first=True), torch.randn(5, 6, 4)),
    "Embedding": (nn.Embedding(9, 4, padding_idx=0), torch.randint(9, (5, 6))),
    "EmbeddingBag": (nn.EmbeddingBag(9, 4, mode="sum"), torch.randint(9, (5, 6))),
    "rerouted": (Positions(), torch.randn(5, 6, 3)),
}


def converted(plain: nn.Module, method: str) -> Any:
    kind = type(plain).__name__
    rules = [{"name": "table", "targets": [f"type:{kind}"]}] if "Embedding" in kind else []
    return bayesify.convert(plain, {"method": method, **POLICY, "rules": rules})


def called(model: nn.Module, x: Tensor) -> Tensor:
    if isinstance(model, nn.MultiheadAttention):
        return model(x, x, x)[0]  # type: ignore[no-any-return]
    if isinstance(model, nn.RNNCell):
        return model(x, model(x))  # type: ignore[no-any-return]
    output = model(x, x) if isinstance(model, nn.Bilinear) else model(x)
    return output[0] if isinstance(output, tuple) else output


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", LAYERS)
def test_examples_calls_and_the_sampled_network_agree(name: str, method: str) -> None:
    plain, x = LAYERS[name]
    model = converted(plain, method)
    with torch.no_grad():
        with bayesify.draw(model, seed=3):
            whole = called(model, x)
            rows = torch.cat([called(model, row) for row in x.split(1)])
        torch.testing.assert_close(rows, whole)
        torch.testing.assert_close(called(bayesify.sample(model, seed=3), x), whole)
        with bayesify.draw(model, seed=4):
            assert not torch.allclose(called(model, x), whole, atol=1e-2)
        assert not torch.allclose(called(model, x), whole, atol=1e-2)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", LAYERS)
def test_one_draw_for_each_example(name: str, method: str) -> None:
    """Each row of a batch of 5 with `draws=5` is that row alone with the draw of its number."""
    plain, x = LAYERS[name]
    model = converted(plain, method)
    same = x[:1].expand(5, *x.shape[1:]).contiguous()
    with torch.no_grad(), bayesify.draw(model, seed=3, draws=5):
        batch, again, shared = called(model, x), called(model, x), called(model, same)
    assert torch.equal(batch, again)
    differences = (shared[:, None] - shared[None]).flatten(2).abs().amax(-1)
    assert (differences + torch.eye(5) > 1e-3).all()  # no two draws alike
    swapped = x.clone()
    swapped[1:] = x[[2, 3, 4, 1]]
    with torch.no_grad(), bayesify.draw(model, seed=3, draws=5):
        torch.testing.assert_close(called(model, swapped)[0], batch[0])


@pytest.mark.parametrize("method", METHODS)
def test_the_covariance_is_that_of_one_weight_draw(method: str) -> None:
    """Over positions, examples and calls: two calls of a convolution, against J diag(std²) Jᵀ by autograd."""
    plain = nn.Conv1d(2, 2, 3, padding=1)
    model = converted(plain, method)
    x = torch.randn(3, 2, 4)
    outputs = []
    with torch.no_grad():
        for _ in range(4000):
            with bayesify.draw(model):
                outputs.append(torch.cat([model(x[:2]), model(x[2:])]))
    expected = covariance(plain, model, x)
    mean = plain.double()(x.double()).detach()
    plain.float()
    judge_moments(torch.stack(outputs).double(), mean, expected)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", LAYERS)
def test_gradients_are_those_of_the_sampled_network(name: str, method: str) -> None:
    """By central differences of `sample`, which writes the weights out, along one direction of means and scales."""
    plain, x = LAYERS[name]
    model = converted(plain, method).double()
    x = x.double() if x.is_floating_point() else x
    with bayesify.draw(model, seed=5):
        output = called(model, x)
    weights = torch.randn(output.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    (output * weights).sum().backward()
    with torch.no_grad():
        params = [parameter for parameter in model.parameters() if parameter.grad is not None]
        assert any(param.grad.abs().sum() > 0 for param in params)
        layers = [layer for _, layer in bayesify.variational_layers(model)]
        scales = [layer.scale_of(mean) for layer in layers for mean in layer.means()]
        assert all(scale.grad is not None and scale.grad.abs().sum() > 0 for scale in scales)
        # a padding row has no gradient by torch's rule
        direction = [torch.randn_like(param) * (param.grad != 0) for param in params]
        slope = sum(float((param.grad * along).sum()) for param, along in zip(params, direction, strict=True))

        def value(step: float) -> float:
            for param, along in zip(params, direction, strict=True):
                param += step * along
            found = (called(bayesify.sample(model, seed=5), x) * weights).sum()
            for param, along in zip(params, direction, strict=True):
                param -= step * along
            return float(found)

        assert (value(1e-5) - value(-1e-5)) / 2e-5 == pytest.approx(slope, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_a_weight_that_is_computed_with_first(method: str) -> None:
    plain, x = nn.Sequential(Standardizes(3, 4, 3, padding=1)), torch.randn(5, 3, 6)
    model: Any = bayesify.convert(plain, {"method": method, **POLICY, "bias": "deterministic"})
    with torch.no_grad():
        with bayesify.draw(model, seed=3):
            whole = model(x)
            torch.testing.assert_close(torch.cat([model(row) for row in x.split(1)]), whole)
        torch.testing.assert_close(bayesify.sample(model, seed=3)(x), whole)
        with bayesify.draw(model, draws=5), pytest.raises(UsageError, match="computes with its weight"):
            model(x)


@pytest.mark.parametrize("method", METHODS)
def test_both_towers_see_one_function(method: str) -> None:
    model = converted(nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2)), method)
    x = torch.randn(6, 3)
    with bayesify.draw(model):
        assert torch.equal(model(x) - model(x), torch.zeros(6, 2))
    assert not torch.equal(model(x), model(x))


def test_blocks_nest_and_belong_to_their_thread() -> None:
    model = converted(nn.Linear(3, 2), "flipout")
    x, others = torch.randn(6, 3), []
    with torch.no_grad(), bayesify.draw(model, seed=1):
        outer = model(x)
        with bayesify.draw(model, seed=2):
            assert not torch.equal(model(x), outer)
        with bayesify.posterior_mean(model):
            mean = model(x)
        assert torch.equal(model(x), outer)

        def elsewhere() -> None:
            with torch.no_grad():
                others.extend([model(x), model(x)])

        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        assert not torch.equal(others[0], others[1])
    assert torch.equal(mean, F.linear(x, model.weight, model.bias))


def test_a_seed_leaves_the_generators_alone_and_a_draw_is_fresh_without() -> None:
    model, x = converted(nn.Linear(3, 2), "lrt"), torch.randn(1, 3)
    before = torch.get_rng_state()
    with bayesify.draw(model, seed=1):
        model(x)
    bayesify.sample(model, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    outputs = []
    for _ in range(2):
        with bayesify.draw(model):
            outputs.append(model(x))
    assert not torch.equal(*outputs)


def test_a_draw_follows_the_parameters() -> None:
    model, x = converted(nn.Linear(3, 2), "flipout"), torch.randn(1, 3)
    with torch.no_grad(), bayesify.draw(model):
        first = model(x)
        model.bias += 1
        torch.testing.assert_close(model(x), first + 1)


def test_ties_share_a_draw() -> None:
    plain = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    plain[1].weight = plain[0].weight
    model: Any = bayesify.convert(plain, "flipout")
    bayesify.set_posterior_std(model, 0.3)
    x = torch.randn(2, 4)
    with torch.no_grad(), bayesify.draw(model, seed=1):
        weight = model[0](torch.eye(4)).T
        torch.testing.assert_close(model(x), x @ weight.T @ weight.T)


class Folds(nn.Module):
    """Positions folded into rows: an example is several of them."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x.flatten(0, 1))
        return y.view(*x.shape[:2], 4)


@pytest.mark.parametrize("plain", [nn.Conv1d(6, 4, 3), Folds(), nn.Linear(3, 4)])
def test_draws_by_turns_where_example_inputs_told_where_examples_are(plain: nn.Module) -> None:
    inputs = torch.randn(4, 6, 3), torch.randn(6, 6, 3)
    model: Any = bayesify.convert(plain, {"method": "flipout", **POLICY}, example_inputs=[(x,) for x in inputs])
    x = torch.randn(1, 6, 3).expand(6, 6, 3).contiguous()
    with torch.no_grad(), bayesify.draw(model, draws=3):
        y = model(x)
    torch.testing.assert_close(y[3:], y[:3])
    assert not torch.allclose(y[0], y[1], atol=1e-2)
    assert not torch.allclose(y[0], y[2], atol=1e-2)
    constant = torch.ones(6, 6, 3)
    with torch.no_grad(), bayesify.draw(model, draws=3):
        y = model(constant)
    if not isinstance(plain, nn.Conv1d):  # all positions of an example see one draw
        torch.testing.assert_close(y, y[:, :1].expand_as(y))
        assert not torch.allclose(y[0], y[1], atol=1e-2)


def test_rows_that_are_not_known_to_be_examples_are_refused() -> None:
    model: Any = bayesify.convert(Folds(), "flipout")
    with bayesify.draw(model, draws=4), pytest.raises(UsageError, match="has 24 rows where examples should be"):
        model(torch.randn(4, 6, 3))


@pytest.mark.parametrize("method", METHODS)
def test_compiled_code_holds_draws(method: str) -> None:
    model = converted(nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2)), method)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    x = torch.randn(6, 3)
    with torch.no_grad():
        fresh = compiled(x)
        for seed in (1, 2):
            with bayesify.draw(model, seed=seed):
                torch.testing.assert_close(compiled(x), model(x))
        assert not torch.equal(compiled(x), fresh)


def test_what_cannot_be_meant_is_refused() -> None:
    with pytest.raises(NotVariationalError), bayesify.draw(nn.Linear(2, 2)):
        pass
    model = converted(nn.Linear(3, 2), "flipout")
    with pytest.raises(UsageError, match="draws=0"), bayesify.draw(model, draws=0):
        pass
    lazy: Any = bayesify.convert(nn.LazyLinear(3), "flipout")
    with pytest.raises(UninitializedLayerError), bayesify.draw(lazy):
        pass
    with bayesify.draw(model, draws=4):
        with pytest.raises(UsageError, match="has 6 rows where examples should be"):
            model(torch.randn(6, 3))
        with pytest.raises(UsageError, match="no dimension holds the examples"):
            model(torch.randn(3))
    rnn = converted(nn.GRU(3, 2), "flipout")
    packed = nn.utils.rnn.pack_sequence([torch.randn(4, 3), torch.randn(2, 3)])
    with bayesify.draw(rnn, draws=2), pytest.raises(UsageError, match="packed sequences"):
        rnn(packed)
    with bayesify.draw(rnn, seed=0):
        torch.testing.assert_close(rnn(packed)[0].data, bayesify.sample(rnn, seed=0)(packed)[0].data)
