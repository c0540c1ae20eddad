"""Every product's own gradients are autograd's, its bias's too."""

from __future__ import annotations

import pytest
import torch

from bayesify.estimators.products import BilinearProduct, ConvProduct, EinsumProduct, LinearProduct, Product

CASES: dict[str, tuple[Product, list[tuple[int, ...]], tuple[int, ...], int]] = {
    "linear": (LinearProduct(), [(2, 3, 4)], (5, 4), 5),
    "bilinear": (BilinearProduct(), [(2, 3), (2, 4)], (5, 3, 4), 5),
    "einsum": (EinsumProduct("abx", "xy", "aby"), [(2, 3, 4)], (4, 5), 5),
    "conv": (ConvProduct((2,), (1,), (1,), 1), [(2, 4, 7)], (6, 4, 3), 6),
}


@pytest.mark.parametrize("kind", CASES)
def test_gradients_are_those_of_autograd(kind: str) -> None:
    product, shapes, weight_shape, outputs = CASES[kind]
    torch.manual_seed(0)
    inputs = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    weight = torch.randn(weight_shape, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(outputs, dtype=torch.float64, requires_grad=True)
    output = product(inputs, weight, bias)
    grad = torch.randn_like(output)
    expected = torch.autograd.grad(output, [*inputs, weight, bias], grad)
    with torch.no_grad():
        of_inputs, of_weight, of_bias = product.gradients(grad, inputs, weight, [True] * (len(inputs) + 2))
    for own, reference in zip([*of_inputs, of_weight, of_bias], expected, strict=True):
        assert own is not None
        torch.testing.assert_close(own, reference)
