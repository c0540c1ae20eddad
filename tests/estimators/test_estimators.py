"""What the estimators cost, and how they behave in eager loops and under the compiler. Moments: `contract.py`."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

import bayesify
from bayesify.nn.kl import total_kl
from bayesify.nn.settings import Method
from tests.support import (
    METHODS,
    as_if_compiling,
    covariance,
    expected_covariance,
    judge,
    judge_mean,
    judge_moments,
    noisy,
    quiet,
    variational,
)

PLAIN: dict[str, tuple[Callable[[], nn.Module], tuple[tuple[int, ...], ...]]] = {
    "linear": (lambda: nn.Linear(4, 3), ((2, 4),)),
    "bilinear": (lambda: nn.Bilinear(3, 2, 3), ((2, 3), (2, 2))),
    "conv2d": (lambda: nn.Conv2d(2, 2, 2), ((2, 2, 3, 3),)),
    "conv_transpose2d": (lambda: nn.ConvTranspose2d(2, 2, 2), ((2, 2, 2, 2),)),
}
each_method = pytest.mark.parametrize("method", METHODS)


@each_method
@pytest.mark.parametrize("kind", PLAIN)
def test_moments_of_one_call_after_another(method: Method, kind: str) -> None:
    """No vmap: as a training loop calls a layer."""
    make, shapes = PLAIN[kind]
    plain = make().double()
    layer, inputs = variational(plain, method), [torch.randn(shape, dtype=torch.float64) for shape in shapes]
    with torch.no_grad():
        samples = torch.stack([layer(*inputs) for _ in range(1500)])
    judge_moments(samples, plain(*inputs).detach(), expected_covariance(plain, layer, inputs))


@each_method
def test_equal_examples_of_a_batch_get_noise_of_their_own(method: Method) -> None:
    plain, x = nn.Linear(64, 1, bias=False).double(), torch.ones(1, 64, dtype=torch.float64)
    layer = variational(plain, method)
    noise = (layer(x.expand(20_000, 64)) - plain(x)).detach().squeeze()
    assert (noise.abs() * 1e9).round().unique().numel() > 19_000  # more than signs: other combinations of weights
    judge("mean", noise.mean(), noise.std() / math.sqrt(len(noise)))
    exact = covariance(plain, layer, x).item()
    assert noise.var().item() == pytest.approx(exact, rel=1 if method == "flipout" else 0.07)


def test_variance_of_the_lrt_is_exact_given_the_input() -> None:
    """A big repeated batch: all outputs are independent, so that the estimate is sharp."""
    plain, x = nn.Linear(8, 4).double(), torch.randn(1, 8, dtype=torch.float64)
    layer = variational(plain, "lrt")
    noise = (layer(x.expand(200_000, 8)) - plain(x)).detach()
    judge_mean("variance", noise.square() / covariance(plain, layer, x).diagonal(), 1.0)
    judge_mean("fourth moment", noise[:, 0] ** 4 / covariance(plain, layer, x)[0, 0] ** 2, 3.0)


@each_method
def test_there_is_no_floor_under_the_noise(method: Method) -> None:
    """A std of 1e-8 gives noise of 1e-8, not of sqrt(some epsilon)."""
    layer = variational(nn.Linear(4, 3, bias=False).double(), method, noisy(bias="deterministic"))
    layer.weight.data.zero_()
    layer.set_std("weight", 1e-8)
    with torch.no_grad():
        output = layer(torch.ones(2000, 4, dtype=torch.float64))
    assert 1e-8 < output.std().item() < 4e-8
    assert torch.equal(layer(torch.zeros(2, 4, dtype=torch.float64)), torch.zeros(2, 3, dtype=torch.float64))


@each_method
@pytest.mark.parametrize("compiling", [False, True])
def test_half_zero_images_have_finite_gradients(method: Method, compiling: bool) -> None:
    """Most pixels of a padded digit see nothing but zeros, and sqrt has no derivative there."""
    layer = variational(nn.Conv2d(1, 3, 3, padding=1), method, noisy(bias="deterministic"))
    image = torch.zeros(2, 1, 10, 10)
    image[..., 4:6, 4:6] = 1.0
    image.requires_grad_()
    with as_if_compiling() if compiling else nullcontext():
        layer(image).square().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in (image, *layer.parameters()))


def _saved_bytes(function: Callable[[], Tensor], known: list[Tensor]) -> int:
    """Bytes of distinct storages that autograd keeps between forward and backward, beside the known ones."""
    kept: list[Tensor] = []  # alive until counted, so that no address is used twice

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        function()
    sizes = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in kept}
    return sum(size for address, size in sizes.items() if address not in {tensor.data_ptr() for tensor in known})


COSTS: dict[str, tuple[Callable[[], nn.Module], tuple[tuple[int, ...], ...]]] = {
    "linear": (lambda: nn.Linear(16, 24), ((8192, 16),)),
    "tokens": (lambda: nn.Linear(16, 24), ((16, 512, 16),)),
    "bilinear": (lambda: nn.Bilinear(8, 8, 16), ((8192, 8), (8192, 8))),
    "conv2d": (lambda: nn.Conv2d(4, 8, 3, padding=1), ((16, 4, 32, 32),)),
    "conv_transpose2d": (lambda: nn.ConvTranspose2d(4, 8, 2, stride=2), ((16, 4, 16, 16),)),
}


@each_method
@pytest.mark.parametrize("kind", COSTS)
def test_little_is_kept_for_backward(method: Method, kind: str) -> None:
    """The noise keeps the inputs and, Flipout: a bit per sign; LRT: one tensor of the output's size, its noise."""
    make, shapes = COSTS[kind]
    inputs = [torch.randn(shape, requires_grad=True) for shape in shapes]
    layer = variational(make(), method)
    known = [*inputs, *layer.parameters()]
    product, _ = layer.product(*inputs)
    kept = _saved_bytes(lambda: layer(*inputs), known)
    kept -= _saved_bytes(lambda: product(inputs, layer.weight, layer.bias), known)
    outputs, elements = layer(*inputs).numel(), sum(x.numel() for x in inputs)
    weights = 16 * sum(parameter.numel() for parameter in layer.parameters())
    activations = (outputs + elements) // 8 + 64 if method == "flipout" else 4 * outputs
    assert kept <= activations + weights
    if kind in ("tokens", "conv2d", "conv_transpose2d") and method == "flipout":
        assert kept <= (outputs + elements) // 100 + weights  # signs per example, not per element


@each_method
def test_of_the_weights_size_only_the_draw_is_kept(method: Method) -> None:
    """Of a step with its KL: Flipout's draw, and for the LRT nothing. Its signs have four bytes where they are few."""
    x = torch.randn(1, 64, requires_grad=True)
    layer = variational(nn.Linear(64, 512), method, noisy(bias="deterministic"))
    kept = _saved_bytes(lambda: layer(x).sum() + layer.kl_divergence(), [x, *layer.parameters()])
    assert kept <= layer.weight.nbytes * (1.02 if method == "flipout" else 0.2)


class TwoOfAShape(nn.Module):
    """Two layers of one shape, the first called twice: the compiler must not merge their noise."""

    def __init__(self, make: Callable[[], Any]) -> None:
        super().__init__()
        self.first, self.second = make(), make()
        self.second.load_state_dict(self.first.state_dict())

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return torch.stack([self.first(x), self.second(x), self.first(x)]), total_kl(self)


@pytest.mark.parametrize(("method", "kind"), [("flipout", "conv2d"), ("lrt", "linear")])
def test_compiled_noise_is_fresh_at_each_call_and_has_the_right_variance(method: Method, kind: str) -> None:
    make, (shape,) = PLAIN[kind]
    plain = make()
    model = TwoOfAShape(lambda: variational(plain, method))
    x = torch.randn(shape)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True)
    calls = [compiled(x) for _ in range(1500)]  # with gradients: only then does the compiler look for what is common
    assert torch.allclose(calls[0][1], total_kl(model))
    noise = torch.stack([call[0].detach() for call in calls]).double() - plain(x).detach().double()
    for layer, samples in zip((model.first, model.second, model.first), noise.unbind(1), strict=True):
        judge_moments(samples, torch.zeros(()), expected_covariance(plain, layer, [x]))
    for one, other in ((0, 1), (0, 2), (1, 2)):
        judge_mean(f"correlation of calls {one} and {other}", noise[:, one] * noise[:, other], 0.0)
    judge_mean("correlation of two passes", noise[1:] * noise[:-1], 0.0)


@each_method
def test_compiled_training_step_draws_once(method: Method) -> None:
    """The backward pass uses the noise of the forward pass: for y = w·x the gradient of rho follows from y itself."""
    layer = variational(nn.Linear(1, 1, bias=False).double(), method, noisy(bias="deterministic"))
    compiled = torch.compile(layer, fullgraph=True)
    x = torch.tensor([[2.0]], dtype=torch.float64)
    for _ in range(5):
        output = compiled(x)
        layer.zero_grad()
        output.sum().backward()
        noise = ((output - layer.weight @ x) / layer.weight_std).detach()
        torch.testing.assert_close(layer.weight_rho.grad, noise * torch.sigmoid(layer.weight_rho.detach()))
        torch.testing.assert_close(layer.weight.grad, x)


def test_other_batch_sizes_compile_as_often_as_the_plain_layer() -> None:
    """Signs of a few small examples fill one word, which is a case apart to a compiler."""
    plain = nn.Linear(5, 3)
    graphs = []
    for layer in (plain, variational(plain, "flipout")):
        torch._dynamo.reset()
        counter = CompileCounterWithBackend("aot_eager")
        compiled = torch.compile(layer, backend=counter)
        for batch in (32, 16, 8, 2):
            assert compiled(torch.randn(batch, 5)).shape == (batch, 3)
        graphs.append(counter.frame_count)
    assert graphs[0] == graphs[1]


@each_method
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_gives_the_plain_layers_dtype_and_the_right_variance(method: Method, dtype: torch.dtype) -> None:
    plain, x = nn.Linear(8, 3), torch.randn(2, 8)
    layer = variational(plain, method)
    with torch.autocast("cpu", dtype):
        assert layer(x).dtype == plain(x).dtype == dtype
        with torch.no_grad():
            samples = torch.stack([layer(x) for _ in range(1500)])
    judge_moments(samples.double(), plain(x).detach(), expected_covariance(plain, layer, [x]))


def test_squares_of_the_lrt_do_not_overflow_in_half_precision() -> None:
    """|x| > 255 has a square beyond float16: the variance is made in float32."""
    plain, x = nn.Linear(4, 2), torch.full((4000, 4), 1e4)
    plain.weight.data *= 0.1
    layer = variational(plain, "lrt")
    with torch.autocast("cpu", torch.float16):
        output = layer(x)
        output.float().mean().backward()
    assert output.isfinite().all()
    exact = covariance(plain, layer, x[:1]).diagonal()
    judge_mean("variance", (output.double() - plain(x).double()).detach().square() / exact, 1.0)
    assert all(parameter.grad.isfinite().all() for parameter in layer.parameters())


@each_method
def test_drawing_leaves_seeds_and_state_to_the_user(method: Method) -> None:
    """The same seed gives the same output; building, KL and a quiet pass draw nothing."""
    layer, x = variational(nn.Linear(4, 3), method), torch.randn(2, 4)
    torch.manual_seed(7)
    first = layer(x)
    torch.manual_seed(7)
    state = torch.get_rng_state()
    layer.kl_divergence()
    layer.reset_posterior()
    with quiet(layer):
        layer(x)
    assert torch.equal(torch.get_rng_state(), state)
    assert layer(x).shape == first.shape
    assert not torch.equal(torch.get_rng_state(), state)


class Overwriting(nn.Module):
    """Writes what a layer makes of a window of its input over that window."""

    def __init__(self, call: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.weight = nn.Parameter(torch.randn(4, 4))
        self.call = call

    def forward(self, x: Tensor, window: slice) -> Tensor:
        x = x * 1.0
        x[:, window] += self.call(self, x[:, window])
        return x


OVERWRITTEN: dict[str, tuple[Callable[[Any, Tensor], Tensor], slice]] = {
    "linear": (lambda net, x: nn.functional.linear(x, net.weight), slice(1, 3)),
    "matmul": (lambda net, x: x @ net.weight, slice(1, 3)),
    "attention": (lambda net, x: net.attention(x, x, x, need_weights=False)[0], slice(1, 3)),
    "attention, all of it": (lambda net, x: net.attention(x, x, x, need_weights=False)[0], slice(None)),
}


@each_method
@pytest.mark.parametrize("kind", OVERWRITTEN)
def test_an_input_may_be_overwritten_where_torch_had_copied_it(method: Method, kind: str) -> None:
    torch.manual_seed(0)
    call, window = OVERWRITTEN[kind]
    plain, x = Overwriting(call), torch.randn(3, 5, 4)
    model = bayesify.convert(plain, method)
    bayesify.set_posterior_std(model, 1e-7)
    for net in (plain, model):
        net(x, window).square().sum().backward()
    for name, mean in plain.named_parameters():
        found = model.get_parameter(name).grad
        assert mean.grad is None or torch.allclose(found, mean.grad, atol=1e-4), name
