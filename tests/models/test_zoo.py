"""Public architectures convert whole: what they computed stays, what converts is noisy, nothing is counted twice."""

from __future__ import annotations

import copy
import gc
import io
import pickle
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bayesify

from .zoo import ZOO
from .zoo_case import Architecture, coverage, run

# torch's fused encoder kernel may run in the original, which rounds otherwise than its layers one by one
ROUNDS_OTHERWISE = {"nn.TransformerEncoder": 1e-6}
UNMOVED = ("never called", "does not move the output")


@dataclass
class Case:
    """One architecture, converted, beside the original."""

    name: str
    method: str
    architecture: Architecture

    @cached_property
    def plain(self) -> nn.Module:
        return self.architecture.built()

    @cached_property
    def expected(self) -> list[Tensor]:
        with torch.no_grad():
            return run(self.plain, self.architecture.given())

    @cached_property
    def plan(self) -> bayesify.Plan:
        return bayesify.plan(self.plain, self.method)

    @cached_property
    def model(self) -> Any:
        return bayesify.convert(self.plain, self.method)

    def output(self, model: nn.Module | None = None, seed: int = 2) -> list[Tensor]:
        return run(self.model if model is None else model, self.architecture.given(), seed)

    def quiet(self, model: nn.Module | None = None) -> list[Tensor]:
        model = self.model if model is None else model
        with bayesify.posterior_mean(model), torch.no_grad():
            return self.output(model)


@pytest.fixture(autouse=True, scope="module")
def _libraries(request: pytest.FixtureRequest) -> None:
    """timm and transformers import torchvision where it is, and fail where it does not import."""
    if find_spec("torchvision"):
        request.getfixturevalue("vision")


CASES = [(name, method) for name in ZOO for method in ("flipout", "lrt")]


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def case(request: pytest.FixtureRequest, _libraries: None) -> Iterator[Case]:
    name, method = request.param
    yield Case(name, method, ZOO[name])
    gc.collect()  # models hold cycles (their `kl`), and some are large


def same(ours: list[Tensor], theirs: list[Tensor]) -> bool:
    return len(ours) == len(theirs) and all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))


def test_a_copy_keeps_its_function_and_the_original_is_untouched(case: Case) -> None:
    plain, expected = case.plain, case.expected
    before = copy.deepcopy(plain.state_dict())
    kinds = [(name, type(module), list(vars(module))) for name, module in plain.named_modules()]
    hooks = sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in plain.modules())
    model = case.model
    assert sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in plain.modules()) == hooks
    assert [(name, type(module), list(vars(module))) for name, module in plain.named_modules()] == kinds
    assert list(plain.state_dict()) == list(before)
    assert all(torch.equal(value, before[name]) for name, value in plain.state_dict().items())
    assert not {id(parameter) for parameter in plain.parameters()} & {id(parameter) for parameter in model.parameters()}
    assert [name for name, _ in model.named_modules()] == [name for name, *_ in kinds]
    assert set(before) <= set(model.state_dict())
    quiet = case.quiet()
    if case.name in ROUNDS_OTHERWISE:
        for ours, theirs in zip(quiet, expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=ROUNDS_OTHERWISE[case.name])
    else:
        assert same(quiet, expected)


@torch.no_grad()
def test_noisy_in_eval(case: Case) -> None:
    ours, other = case.output(seed=2), case.output(seed=3)
    assert not case.model.training
    assert all(output.isfinite().all() for output in ours)
    assert [output.shape for output in ours] == [output.shape for output in case.expected]
    if not same(case.output(case.plain, seed=3), case.expected):
        pytest.skip("it draws by itself")
    assert not same(ours, other)
    assert not same(ours, case.expected)


def test_the_output_alone_reaches_every_scale(case: Case) -> None:
    """But for those of layers of which example inputs tell that their noise cannot be seen."""
    case.model.zero_grad()
    outputs = [output for output in case.output() if output.requires_grad]
    sum((output * torch.randn_like(output)).sum() for output in outputs).backward()
    missed = {name: mean for name, layer in bayesify.variational_layers(case.model) for mean in _missed(layer)}
    if not missed:
        return
    made = bayesify.plan(case.plain, case.method, example_inputs=case.architecture.given())
    notes = {name: " ".join(row.notes) for row in made.rows for name in (row.name, *row.aliases)}
    unexplained = {name: mean for name, mean in missed.items() if not any(each in notes[name] for each in UNMOVED)}
    assert not unexplained
    assert len(missed) < len(list(bayesify.variational_layers(case.model)))


def _missed(layer: Any) -> list[str]:
    grads = {name: layer.scale_of(name).grad for name in layer.means()}
    return [name for name, grad in grads.items() if grad is None or not grad.abs().sum() > 0]


def test_kl_counts_each_posterior_once(case: Case) -> None:
    terms = {}
    for _, layer in bayesify.variational_layers(case.model):
        for name in layer.means():
            prior = torch.distributions.Normal(*layer.normal_prior(name))
            posterior = torch.distributions.Normal(_mean(layer, name), layer.std_of(name))
            # a weight that other Parameters are computed into has a scale of its own
            key = id(layer._parameters.get(name, layer.scale_of(name)))
            terms[key] = torch.distributions.kl_divergence(posterior, prior).double().sum()
    total = case.model.kl()
    assert total.isfinite()
    torch.testing.assert_close(total.double(), sum(terms.values(), torch.zeros(()).double()), rtol=1e-3, atol=1e-3)
    case.model.kl.reset()
    with torch.no_grad():
        case.output()
    assert case.model.kl(reached=True) <= total
    total.backward()
    assert all(_finite(layer) for _, layer in bayesify.variational_layers(case.model))


def _mean(layer: Any, name: str) -> Tensor:
    with torch.no_grad():
        mean = getattr(layer, name).detach().clone()
        return torch.view_as_real(mean) if mean.is_complex() else mean


def _finite(layer: Any) -> bool:
    return all(layer.scale_of(name).grad.isfinite().all() for name in layer.means())


@torch.no_grad()
def test_copies_and_files(case: Case) -> None:
    """A copy, what pickle makes where the original can be pickled, and a second model with this one's state."""
    model, expected = case.model, case.output()
    copied = copy.deepcopy(model)
    assert same(case.output(copied), expected)
    torch.testing.assert_close(copied.kl(), model.kl())
    assert copied.kl.root is copied
    if _pickled(case.plain) is not None:
        found = _pickled(model)
        assert found is not None
        assert same(case.output(found), expected)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other: Any = bayesify.convert(case.architecture.built(), case.method, inplace=True)
    for parameter in other.parameters():
        parameter += 0.1
    assert not same(case.output(other), expected)
    other.load_state_dict(torch.load(file, weights_only=True))
    other.train().eval()  # some keep what they computed in eval mode until the next training
    assert same(case.output(other), expected)


def _pickled(model: nn.Module) -> nn.Module | None:
    try:
        return pickle.loads(pickle.dumps(model))  # type: ignore[no-any-return]
    except (RuntimeError, AttributeError, TypeError, pickle.PicklingError):
        return None


def test_the_plan_names_all_that_stays(case: Case) -> None:
    found = coverage(case.model, case.plan)
    assert found.layers == case.plan.totals["converts"]
    assert found.covered > 0
    assert [name for name, (_, why) in found.left.items() if not why] == []
    assert found.share + sum(size for size, _ in found.left.values()) / found.total == pytest.approx(1)


def test_the_zoo_is_large_and_holds_what_it_should() -> None:
    assert len(ZOO) >= 40
    libraries = {"torch", "torchvision", "timm", "transformers", "diffusers", "papers"}
    assert libraries == {architecture.library for architecture in ZOO.values()}
    named = {"nn.Transformer", "LSTM language model", "GPT-2", "ViT", "wav2vec2", "ALBERT", "T5", "Mixtral", "U-Net"}
    assert named <= set(ZOO)
