"""What holds for every layer kind, method and parameterization. To test a new kind: inherit and say what it looks like.

    class TestConv1d(LayerContract):
        def plain(self): return nn.Conv1d(4, 6, 3, groups=2)
        def inputs(self, examples): return (torch.randn(examples, 4, 7),)
"""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.utils.checkpoint import checkpoint

import bayesify  # noqa: F401  (tells torch.load which classes it may build)
from bayesify.distributions.posterior import Parameterization
from bayesify.distributions.prior import Normal
from bayesify.nn import Settings
from bayesify.nn.settings import Method
from tests.support import (
    METHODS,
    PARAMETERIZATIONS,
    as_if_compiling,
    assert_moments,
    fixed_noise,
    noisy,
    quiet,
    variational,
)


@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS)
@pytest.mark.parametrize("method", METHODS)
class LayerContract:
    """Inherit, and define `plain` and `inputs`."""

    def plain(self) -> nn.Module:
        """A small plain layer with a bias, in float32."""
        raise AssertionError

    def inputs(self, examples: int) -> tuple[Tensor, ...]:
        """A batch of inputs for it."""
        raise AssertionError

    @pytest.fixture
    def layer(self, method: Method, parameterization: Parameterization) -> Any:
        torch.manual_seed(1)
        return variational(self.plain(), method, noisy(parameterization))

    def test_quiet_is_the_plain_layer(self, method: Method, parameterization: Parameterization) -> None:
        plain = self.plain()
        layer = variational(plain, method, noisy(parameterization))
        inputs = self.inputs(3)
        for training in (True, False):
            with quiet(layer.train(training)):
                assert torch.equal(layer(*inputs), plain(*inputs))
            assert not torch.equal(layer(*inputs), plain(*inputs))
            assert not torch.equal(layer(*inputs), layer(*inputs))
        assert isinstance(layer, type(plain))
        assert torch.equal(layer.weight, plain.weight)

    def test_moments(self, method: Method, parameterization: Parameterization) -> None:
        plain = self.plain().double()
        layer = variational(plain, method, noisy(parameterization))
        assert_moments(plain, layer, [x.double() for x in self.inputs(2)])

    def test_moments_of_one_input_without_a_batch(self, method: Method, parameterization: Parameterization) -> None:
        plain = self.plain().double()
        layer = variational(plain, method, noisy(parameterization))
        assert_moments(plain, layer, [x[0].double() for x in self.inputs(1)], batched=False, count=2000)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
    def test_kl_is_that_of_torch_distributions(self, layer: Any, dtype: torch.dtype) -> None:
        layer.to(dtype)
        expected = torch.zeros((), dtype=torch.float64)
        for name in layer.means():
            wide = [getattr(layer, name).detach().double(), layer.scale_of(name).detach().double()]
            q = torch.distributions.Normal(wide[0], layer._settings.posterior.std(*wide))
            expected += torch.distributions.kl_divergence(q, torch.distributions.Normal(0.0, 1.0)).sum()
        value = layer.kl_divergence()
        assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=0)

    def test_gradients_of_fixed_noise(self, layer: Any) -> None:
        layer.double()
        given = {name: parameter.detach().requires_grad_() for name, parameter in layer.named_parameters()}
        inputs = [x.double().requires_grad_() for x in self.inputs(2)]

        def output(*tensors: Tensor) -> Tensor:
            torch.manual_seed(2)
            parameters = dict(zip(given, tensors[len(inputs) :], strict=True))
            return functional_call(layer, parameters, tensors[: len(inputs)])

        every = (*inputs, *given.values())
        assert torch.autograd.gradcheck(output, every, fast_mode=True)
        assert torch.autograd.gradgradcheck(output, every, fast_mode=True)

    def test_compiled_formula_is_the_eager_one(self, layer: Any) -> None:
        layer.double()
        inputs = [x.double().requires_grad_() for x in self.inputs(2)]
        leaves = (*inputs, *layer.parameters())

        def outcome() -> tuple[Tensor, ...]:
            torch.manual_seed(2)
            output = layer(*inputs) + layer.kl_divergence()
            return (output, *torch.autograd.grad(output.square().sum(), leaves))

        with fixed_noise():  # eager code draws signs in other ways
            eager = outcome()
            with as_if_compiling():
                torch.testing.assert_close(outcome(), eager)

    def test_noise_reaches_every_scale_from_the_output_alone(self, layer: Any) -> None:
        layer(*self.inputs(3)).square().sum().backward()
        for name in layer.means():
            assert layer.scale_of(name).grad.abs().max() > 0

    @pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16])
    @pytest.mark.parametrize("backward_inside", [False, True])
    @pytest.mark.parametrize("size", [0.0, 1.0, 1e4])
    @pytest.mark.parametrize("std", [None, 1e-8])
    def test_gradients_are_finite(
        self, method: Method, parameterization: Parameterization, dtype: torch.dtype | None, backward_inside: bool,
        size: float, std: float | None,
    ) -> None:  # fmt: skip
        """With a deterministic bias, so that the variance at zero input is exactly zero, where sqrt has no slope."""
        layer = variational(self.plain(), method, noisy(parameterization, bias="deterministic"))
        for parameter in layer.parameters():
            parameter.data *= 0.1 if size > 1 else 1  # so that the mean, too, fits into half precision
        for name in layer.means() if std else ():
            layer.set_std(name, std)
        inputs = [(x.clamp(-1, 1) * size**(1 / len(self.inputs(1)))).requires_grad_() for x in self.inputs(2)]
        with torch.autocast("cpu", dtype, enabled=dtype is not None):
            output = layer(*inputs)
            if backward_inside:
                output.mean().backward()
        if not backward_inside:
            output.mean().backward()
        assert output.isfinite().all()
        for leaf in (*inputs, *layer.parameters()):
            assert leaf.grad is not None
            assert leaf.grad.isfinite().all()

    def test_kl_under_autocast_is_wide(self, layer: Any) -> None:
        expected = layer.kl_divergence()
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(layer.kl_divergence(), expected)

    def test_compiles_to_one_graph(self, layer: Any) -> None:
        def both(*inputs: Tensor) -> tuple[Tensor, Tensor]:
            return layer(*inputs, return_kl=True)

        inputs, outcomes = self.inputs(3), []
        torch._dynamo.reset()
        with fixed_noise():  # the compiler may draw in another order
            for function in (both, torch.compile(both, fullgraph=True, backend="aot_eager")):
                output, kl = function(*inputs)
                gradients = torch.autograd.grad(output.square().sum() + kl, list(layer.parameters()))
                outcomes.append((output, kl, *gradients))
        torch.testing.assert_close(outcomes[1], outcomes[0])
        assert not torch.equal(outcomes[0][0], self.plain()(*inputs))

    @pytest.mark.parametrize("reentrant", [False, True])
    def test_checkpointing_draws_the_same_noise_again(self, layer: Any, reentrant: bool) -> None:
        inputs = [x.requires_grad_() for x in self.inputs(3)]
        leaves = (*inputs, *layer.parameters())

        def gradients(output: Tensor) -> list[Tensor]:
            for leaf in leaves:
                leaf.grad = None
            (output.square().sum() + layer.kl_divergence()).backward()
            return [leaf.grad for leaf in leaves]

        torch.manual_seed(5)
        expected = gradients(layer(*inputs))
        torch.manual_seed(5)
        output = checkpoint(layer, *inputs, use_reentrant=reentrant)
        torch.randn(7)  # what happens in between must not matter
        torch.testing.assert_close(gradients(output), expected)

    def test_vmap_over_draws_takes_gradients(self, layer: Any) -> None:
        inputs = self.inputs(2)
        parameters = {name: parameter.detach() for name, parameter in layer.named_parameters()}

        def loss(given: dict[str, Tensor]) -> Tensor:
            return functional_call(layer, given, inputs).square().sum()

        found = vmap(lambda _: grad(loss)(parameters), randomness="different")(torch.empty(3))
        for name, each in found.items():
            assert each.shape == (3, *parameters[name].shape)
            assert not torch.equal(each[0], each[1])

    @pytest.mark.parametrize("way", ["deepcopy", "pickle", "weights_only", "state_dict"])
    def test_copies(self, layer: Any, way: str) -> None:
        twin = self.copied(layer, way)
        assert type(twin) is type(layer)
        assert torch.equal(twin.kl_divergence(), layer.kl_divergence())
        outputs = []
        inputs = self.inputs(3)
        for module in (layer, twin):
            torch.manual_seed(6)
            outputs.append(module(*inputs))
        assert torch.equal(*outputs)
        theirs = {id(parameter) for parameter in twin.parameters()}
        assert theirs.isdisjoint(id(parameter) for parameter in layer.parameters())
        twin.scale_of("weight").data += 1
        assert not torch.equal(twin.kl_divergence(), layer.kl_divergence())

    def copied(self, layer: Any, way: str) -> Any:
        if way == "deepcopy":
            return copy.deepcopy(layer)
        if way == "pickle":
            return pickle.loads(pickle.dumps(layer))
        if way == "weights_only":
            file = io.BytesIO()
            torch.save(layer, file)
            file.seek(0)
            return torch.load(file, weights_only=True)
        twin = variational(self.plain(), layer.method, layer._settings)
        twin.load_state_dict(layer.state_dict())
        return twin

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
    def test_dtypes(self, method: Method, parameterization: Parameterization, dtype: torch.dtype) -> None:
        prior = Normal("pretrained")
        layer = variational(self.plain(), method, noisy(parameterization, prior=prior)).to(dtype)
        inputs = [x.to(dtype) for x in self.inputs(3)]
        output = layer(*inputs)
        assert output.dtype == dtype
        _has_dtypes(layer, dtype)
        assert output.isfinite().all()
        assert layer.kl_divergence().isfinite()
        built_so = variational(self.plain().to(dtype), method, noisy(parameterization, prior=prior))
        _has_dtypes(built_so, dtype)

    def test_hooks_run(self, layer: Any) -> None:
        seen: list[Any] = []
        layer.register_forward_pre_hook(lambda module, args: seen.append(len(args)))
        layer.register_forward_hook(lambda module, args, output: output + 100)
        layer.register_full_backward_hook(lambda module, grad_input, grad_output: seen.append("backward"))
        inputs = [x.requires_grad_() for x in self.inputs(2)]
        output = layer(*inputs)
        assert output.min() > 50
        output.sum().backward()
        assert seen == [len(inputs), "backward"]

    def test_stands_alone(self, method: Method, parameterization: Parameterization, layer: Any) -> None:
        output, kl = layer(*self.inputs(2), return_kl=True)
        assert output.shape == self.plain()(*self.inputs(2)).shape
        assert torch.equal(kl, layer.kl_divergence())
        assert kl.shape == ()

    def test_settings_are_the_fresh_layers_own(self, method: Method, parameterization: Parameterization) -> None:
        layer = variational(self.plain(), method, Settings(), uneven=False)
        assert layer.means() == ["weight"]
        assert layer.normal_prior("weight") == (0.0, 1.0)


def _has_dtypes(layer: nn.Module, dtype: torch.dtype) -> None:
    """Scales are at least float32: in a narrower one a step of an optimizer would not move them."""
    wide = torch.float64 if dtype is torch.float64 else torch.float32
    for name, tensor in (*layer.named_parameters(), *layer.named_buffers()):
        assert tensor.dtype == (wide if name.endswith(("_rho", "_log_alpha")) else dtype), name
