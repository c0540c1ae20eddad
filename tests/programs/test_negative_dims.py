"""Operators that name a dimension from the end: the weight's product is that of the very part that they take."""

import torch
from torch import Tensor, nn

import bayesify


class Parts(nn.Module):
    """Multiplies by parts of two weights, named from the end."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.v = nn.Parameter(torch.randn(3, 3, 3)), nn.Parameter(torch.randn(3, 6))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.w.select(-1, 0) + x @ self.w.select(-2, 1) + x @ torch.ops.aten.slice.Tensor(self.v, -1, 3, 6)


def test_parts_of_a_weight_that_are_named_from_the_end() -> None:
    model, x = Parts(), torch.randn(2, 3)
    converted = bayesify.convert(torch.export.export(model, (x,)), "lrt")
    with bayesify.posterior_mean(converted):
        assert torch.allclose(converted(x), model(x), atol=1e-6)
    assert len(list(bayesify.variational_layers(converted))) == 1
