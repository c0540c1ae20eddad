"""Programs in core ATen, as run_decompositions() leaves them: their linear layers are other operators."""

import pytest
import torch
from torch import nn
from torch.export import Dim, export

import bayesify
from tests.support import judge_mean

from .exported import Encoder


class Mixed(nn.Module):
    """Layers on sequences that are not contiguous, and a bilinear one."""

    def __init__(self):
        super().__init__()
        self.tokens, self.channels = nn.Linear(3, 5), nn.Linear(4, 4)
        self.pairs, self.w = nn.Bilinear(4, 4, 2), nn.Parameter(torch.randn(2, 3, 2) * 0.5)

    def forward(self, x):
        x = self.channels(self.tokens(x.transpose(1, 2)).transpose(1, 2))
        return torch.einsum("bk,ekj->bej", self.pairs(x[:, 0], x[:, 1]), self.w.transpose(1, 2)).flatten(1)


class Onto(nn.Module):
    """Products that are added to what data tell, to rows of several positions and over heads."""

    def __init__(self):
        super().__init__()
        self.rows, self.heads = nn.Parameter(torch.randn(4, 3)), nn.Parameter(torch.randn(2, 4, 3))
        self.all = nn.Parameter(torch.randn(2, 4, 3))

    def forward(self, x):
        y = torch.addmm(x[..., :3].flatten(0, 1), x.flatten(0, 1), self.rows).unflatten(0, (-1, 2))
        z = torch.baddbmm(y.transpose(0, 1), x.transpose(0, 1), self.heads).transpose(0, 1)
        return z + torch.tensordot(x, self.all, dims=2).unsqueeze(1)


def core(model, x, dim=0):
    return export(model.eval(), (x,), dynamic_shapes=({dim: Dim("batch", min=1)},)).run_decompositions()


CASES = {
    "mixed": (Mixed, lambda n: torch.randn(n, 3, 4), 0, {"tokens", "channels", "pairs", "root_products"}),
    "encoder": (Encoder, lambda n: torch.randn(n, 5, 8), 0, None),
    "onto": (Onto, lambda n: torch.randn(n, 2, 4), 0, {"root_products"}),
    "sequence-first encoder": (lambda: Encoder(sequence_first=True), lambda n: torch.randn(5, n, 8), 1, None),
}


@pytest.mark.parametrize("method", ["flipout", "lrt"])
@pytest.mark.parametrize("case", CASES)
def test_every_matrix_converts(case, method):
    make, inputs, dim, names = CASES[case]
    torch.manual_seed(0)
    program = core(make(), inputs(3), dim)
    model = bayesify.convert(program, method)
    if names is not None:
        assert {name for name, _ in bayesify.variational_layers(model)} == names
    plain = {name for name, parameter in program.named_parameters() if parameter.dim() > 1}
    assert {key.removesuffix("_rho") for key in model.state_dict() if key.endswith("_rho")} == plain
    x = inputs(4)
    with bayesify.posterior_mean(model):
        assert torch.equal(model(x), program.module()(x))
    (model(x) * torch.randn_like(model(x))).sum().backward()
    scales = [parameter.grad for name, parameter in model.named_parameters() if name.endswith("_rho")]
    assert all(scale is not None and scale.abs().sum() > 0 for scale in scales)


@pytest.mark.parametrize("case", ["mixed", "encoder", "sequence-first encoder", "onto"])
def test_an_example_sees_one_draw_of_each_weight(case):
    """The variance of a sum over an example's positions is a weight draw's; two examples are uncorrelated."""
    make, inputs, dim, _ = CASES[case]
    torch.manual_seed(0)
    model, x, draws = bayesify.convert(core(make(), inputs(3), dim)), inputs(4), 1000
    bayesify.set_posterior_std(model, 0.01)
    model.requires_grad_(False)
    direction = torch.randn_like(model(x))

    def projected():
        return (model(x) * direction).movedim(dim, 0).flatten(1).sum(1)

    def by_weights():
        kept = {key: value.clone() for key, value in model.state_dict().items()}
        for _, layer in bayesify.variational_layers(model):
            for name in layer.means():
                layer._parameters[name].data.copy_(layer.draw(name))
        with bayesify.posterior_mean(model):
            result = projected()
        model.load_state_dict(kept)
        return result

    ours, theirs = (torch.stack([run() for _ in range(draws)]) for run in (projected, by_weights))
    assert (ours.var(0).log() - theirs.var(0).log()).abs().max() < 5.5 * 2 / draws**0.5
    assert (torch.corrcoef(ours.T) - torch.eye(4)).abs().max() < 5.5 / draws**0.5


def test_products_onto_others_before_they_are_decomposed():
    x, plain = torch.randn(5, 2, 4), Onto()
    program = export(plain, (x,), dynamic_shapes=({0: Dim("batch", min=2)},))
    model = bayesify.convert(program)
    assert {key for key in model.state_dict() if key.endswith("_rho")} == {"rows_rho", "heads_rho", "all_rho"}
    bayesify.set_posterior_std(model, 0.1)
    with torch.no_grad():
        noise = torch.stack([model(x) - plain(x) for _ in range(4000)])
    own = x.square().sum(-1, keepdim=True)
    expected = 0.1**2 * (2 * own + x.square().sum((1, 2), keepdim=True)).expand(5, 2, 3)
    judge_mean("variance", noise.square() / expected, 1.0)
    judge_mean("other examples", noise[:, 0] * noise[:, 1], 0.0)
