"""Modules that multiply by weights in their own forward: every form of product has its law."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

import bayesify
from bayesify.nn.settings import Method
from tests.support import METHODS, PARAMETERIZATIONS, assert_moments, draws, fixed_noise, judge_mean


class Form(nn.Module):
    """One matrix (or more dimensions) and what is done with it."""

    def __init__(self, shape: Sequence[int], product: Callable[..., Tensor], bias: int = 0) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(shape))
        self.shift = nn.Parameter(torch.randn(bias)) if bias else None
        self.act = product

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self, x)


def conv1d(m: Form, x: Tensor) -> Tensor:
    """Of torchvision's kind, arguments by keyword."""
    return F.conv1d(x, weight=m.matrix, bias=m.shift, stride=2, padding=1, groups=2)


def attention(m: Form, x: Tensor, role: str) -> Tensor:
    """torch's function over (sequence, batch), with the matrix in one of its roles."""
    one = torch.eye(4, dtype=x.dtype)
    weights = {**dict.fromkeys(("q_proj_weight", "k_proj_weight", "v_proj_weight"), one), role: m.matrix}
    inside, of = [x.transpose(0, 1)] * 3, {"use_separate_proj_weight": True, **weights}
    out = of.pop("out_proj_weight", one)
    y, _ = F.multi_head_attention_forward(*inside, 4, 2, None, None, None, None, False, 0.0, out, m.shift, **of)
    return y.transpose(0, 1)


# name -> (shape of the matrix, the product, shape of one example, size of the bias)
FORMS: dict[str, tuple[tuple[int, ...], Callable[[Form, Tensor], Tensor], tuple[int, ...], int]] = {
    "linear": ((3, 4), lambda m, x: F.linear(x, m.matrix), (4,), 0),
    "linear with bias": ((3, 4), lambda m, x: F.linear(x, m.matrix, m.shift), (2, 4), 3),
    "matmul operator": ((4, 3), lambda m, x: x @ m.matrix, (2, 4), 0),
    "matmul": ((4, 3), lambda m, x: torch.matmul(x, m.matrix), (4,), 0),
    "matmul of the transposed": ((3, 4), lambda m, x: x @ m.matrix.T, (4,), 0),
    "mm": ((4, 3), lambda m, x: x.mm(m.matrix), (4,), 0),
    "addmm": ((4, 3), lambda m, x: torch.addmm(m.shift, x, m.matrix), (4,), 3),
    "addmm onto rows": ((4, 3), lambda m, x: torch.addmm(x[:, :3], x, m.matrix), (4,), 0),
    "addmm onto folded rows": (
        (4, 3), lambda m, x: torch.addmm(x[..., :3].flatten(0, 1), x.flatten(0, 1), m.matrix).view(*x.shape[:2], 3),
        (2, 4), 0,
    ),
    "baddbmm": (
        (2, 4, 3), lambda m, x: torch.baddbmm(m.shift, x.transpose(0, 1), m.matrix).transpose(0, 1), (2, 4), 3,
    ),
    "inner": ((3, 4), lambda m, x: torch.inner(x, m.matrix), (2, 4), 0),
    "tensordot": ((2, 3, 4), lambda m, x: torch.tensordot(x, m.matrix, dims=([1, 2], [0, 2])), (2, 4), 0),
    "from the left": ((3, 4), lambda m, x: m.matrix @ x, (4, 2), 0),
    "bmm": ((2, 4, 3), lambda m, x: torch.bmm(x.transpose(0, 1), m.matrix).transpose(0, 1), (2, 4), 0),
    "matmul over heads": ((2, 4, 3), lambda m, x: x @ m.matrix, (2, 2, 4), 0),
    "einsum": ((4, 3), lambda m, x: torch.einsum("bti,io->bto", x, m.matrix), (2, 4), 0),
    "einsum over heads": ((2, 4, 3), lambda m, x: torch.einsum("hio,bthi->bhto", m.matrix, x), (2, 2, 4), 0),
    "einsum that sums": ((4, 3), lambda m, x: torch.einsum("bti,io->bo", x, m.matrix), (2, 4), 0),
    "conv1d": ((4, 1, 3), conv1d, (2, 5), 4),
    "conv2d": ((2, 2, 2, 2), lambda m, x: F.conv2d(x, m.matrix, padding="same"), (2, 3, 2), 0),
    "conv3d": ((2, 1, 1, 2, 1), lambda m, x: F.conv3d(x, m.matrix), (1, 1, 3, 2), 0),
    "conv_transpose1d": ((2, 2, 2), lambda m, x: F.conv_transpose1d(x, m.matrix, stride=2), (2, 3), 0),
    "conv_transpose2d": ((2, 1, 2, 2), lambda m, x: F.conv_transpose2d(x, m.matrix, m.shift), (2, 2, 2), 1),
    "bilinear": ((3, 2, 2), lambda m, x: F.bilinear(x[:, 0], x[:, 1], m.matrix), (2, 2), 0),
    "matmul with a vector": ((2, 4), lambda m, x: x @ m.matrix[0], (3, 4), 0),
    "output of an attention": ((4, 4), lambda m, x: attention(m, x, "out_proj_weight"), (4, 4), 4),
    "chunks": ((6, 4), lambda m, x: sum(F.linear(x, part) for part in m.matrix.chunk(3)), (4,), 0),
    "rows": ((6, 4), lambda m, x: F.linear(x, m.matrix[1:4]), (4,), 0),
    "reshaped": ((2, 2, 4), lambda m, x: F.linear(x, m.matrix.view(4, -1).to(x.dtype)), (4,), 0),
    "folded rows": ((3, 4), lambda m, x: F.linear(x.reshape(-1, 4), m.matrix).view(*x.shape[:-1], 3), (2, 4), 0),
    "folded windows": ((3, 4), lambda m, x: F.linear(x.flatten(0, 1), m.matrix).view(*x.shape[:-1], 3), (2, 2, 4), 0),
}  # fmt: skip


def converted(plain: nn.Module, method: Method, **policy: Any) -> Any:
    """Converted, with a large std that is another for each element."""
    layer = bayesify.convert(plain, {"method": method, **policy})
    bayesify.set_posterior_std(layer, 0.5)
    for _, each in bayesify.variational_layers(layer):
        for name in each.means():
            scale = each.scale_of(name)
            assert scale is not None
            scale.data += 0.5 * torch.randn_like(scale)
    return layer


def form(name: str, examples: int = 2) -> tuple[Form, Tensor]:
    """The plain module and a batch for it."""
    shape, product, example, bias = FORMS[name]
    torch.manual_seed(1)
    return Form(shape, product, bias), torch.randn(examples, *example)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", FORMS)
def test_every_form_of_product_has_the_law(name: str, method: Method) -> None:
    plain, x = form(name)
    plain, x = plain.double(), x.double()
    layer = converted(plain, method)
    with bayesify.posterior_mean(layer):
        assert torch.equal(layer(x), plain(x))
    assert_moments(plain, layer, [x], count=2000)


def test_rows_of_a_single_example_share_one_draw() -> None:
    plain, x = form("folded rows", examples=1)
    assert_moments(plain, converted(plain, "flipout"), [x], count=2000)


def test_the_values_of_an_attention_have_one_draw_per_example() -> None:
    """Both its positions, that are a multiple of the examples, and its examples lead somewhere in torch's code."""
    plain, x = Form((4, 4), lambda m, x: attention(m, x, "v_proj_weight")).double(), torch.randn(2, 4, 4).double()
    assert_moments(plain, converted(plain, "flipout"), [x], count=2000)


@pytest.mark.parametrize(("role", "layout"), [("v_proj_weight", (1, 1, 0)), ("out_proj_weight", (0, 4, 1))])
def test_example_inputs_tell_where_the_examples_are_in_an_attention(role: str, layout: tuple[int, int, int]) -> None:
    plain = Form((4, 4), lambda m, x: attention(m, x, role)).double()
    small, large = torch.randn(2, 4, 4).double(), torch.randn(3, 4, 4).double()
    layer: Any = bayesify.convert(plain, "flipout", example_inputs=[small, large])
    settings = layer._settings
    assert (settings.batch_dim, settings.rows, settings.run) == layout
    bayesify.set_posterior_std(layer, 0.5)
    assert_moments(plain, layer, [small], count=2000)


def test_the_law_of_two_dimensional_rows_that_are_examples() -> None:
    """The moments judge that no pair of examples is correlated; here, that four rows of four are four examples."""
    plain, _ = form("folded rows")
    x = torch.ones(4, 1, 4)
    noise = draws(converted(plain, "flipout"), 4000, x)[:, :, 0, 0]
    judge_mean("uncorrelated", (noise[:, 0] - noise[:, 0].mean()) * (noise[:, 1] - noise[:, 1].mean()), 0.0)


@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "name",
    [
        "addmm", "addmm onto rows", "baddbmm", "tensordot", "einsum over heads", "chunks", "conv1d", "folded rows",
        "output of an attention",
    ],
)  # fmt: skip
class TestLayer:
    @pytest.fixture
    def layer(self, name: str, method: Method, parameterization: str) -> Any:
        return converted(form(name)[0], method, posterior={"parameterization": parameterization})

    def test_gradients_of_fixed_noise(self, layer: Any, name: str) -> None:
        layer.double()
        x = form(name)[1].double().requires_grad_()
        given = {key: parameter.detach().requires_grad_() for key, parameter in layer.named_parameters()}

        def output(x: Tensor, *tensors: Tensor) -> Tensor:
            torch.manual_seed(2)
            return functional_call(layer, dict(zip(given, tensors, strict=True)), (x,))

        assert torch.autograd.gradcheck(output, (x, *given.values()), fast_mode=True)

    def test_compiles_to_one_graph(self, layer: Any, name: str) -> None:
        x, outcomes = form(name)[1], []
        torch._dynamo.reset()
        with fixed_noise():
            for function in (layer, torch.compile(layer, fullgraph=True, backend="aot_eager")):
                output = function(x)
                loss = output.square().sum() + layer.kl()
                outcomes.append((output, *torch.autograd.grad(loss, list(layer.parameters()))))
        torch.testing.assert_close(outcomes[1], outcomes[0])

    def test_autocast_and_checkpointing(self, layer: Any, name: str) -> None:
        x = form(name)[1].requires_grad_()
        gradients = []
        for recompute in (False, True):
            torch.manual_seed(3)
            with torch.autocast("cpu", torch.bfloat16):
                output = checkpoint(layer, x, use_reentrant=False) if recompute else layer(x)
            gradients.append(torch.autograd.grad(output.float().square().sum(), list(layer.parameters())))
        assert output.dtype == torch.bfloat16
        torch.testing.assert_close(gradients[0], gradients[1])
        assert all(gradient.isfinite().all() and gradient.abs().max() > 0 for gradient in gradients[0])
