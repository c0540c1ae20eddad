"""Whose draw it is in a converted program: an example's own, found by the batch that the program was exported with."""

import pickle

import pytest
import torch
from torch.export import Dim, export

import bayesify
from bayesify.files.untrusted.exported_archive import open_program
from bayesify.nn.folded_batches import watched_arguments

from .exported import GPT, Encoder, Windows, cases, flat


def deltas(run, draws):
    """(draws, examples): a projection of each example's output that mixes all its positions, less the mean's."""
    torch.manual_seed(3)
    with torch.no_grad():
        return torch.stack([run() for _ in range(draws)])


@pytest.mark.parametrize(
    ("case", "site"),
    [
        ("encoder", "encoder.layers.0.self_attn"),  # its input is (sequence, batch, features)
        ("encoder", "encoder.layers.1.self_attn.out_proj"),  # its rows are (sequence, batch)
        ("encoder", "encoder.layers.1.linear1"),
        ("gpt", "mlp.up"),  # its rows are (batch, sequence)
        ("windows", "qkv"),  # its first dimension is (batch, windows)
        ("sequence-first encoder", "encoder.layers.0.self_attn"),
        ("sequence-first encoder", "encoder.layers.1.self_attn.out_proj"),
        ("sequence-first encoder", "encoder.layers.1.linear1"),
    ],
)
def test_each_example_sees_one_weight_draw_of_its_own(case, site, folder):
    """Against weight draws: the variance of a sum over positions; and no covariance between examples."""
    draws, given = 1000, cases()[case].inputs(4)
    model = bayesify.convert(open_program(folder / f"{case}.pt2"), {"rules": [{"targets": [f"re:{site}"]}]})
    bayesify.set_posterior_std(model, 0.05)
    layer = dict(bayesify.variational_layers(model))[site]
    (name,) = layer.means()
    direction = torch.randn(flat(model(*given))[-1].shape)
    model.requires_grad_(False)

    def projected():
        weighted = flat(model(*given))[-1] * direction
        return (weighted.transpose(0, 1) if "sequence" in case else weighted).flatten(1).sum(1)

    def by_weights():
        kept = layer._parameters[name].data.clone()
        layer._parameters[name].data.copy_(layer.draw(name))
        with bayesify.posterior_mean(model):
            result = projected()
        layer._parameters[name].data.copy_(kept)
        return result

    ours, theirs = deltas(projected, draws), deltas(by_weights, draws)
    # the log of a ratio of two sample variances has a standard deviation of about 2/sqrt(draws)
    assert (ours.var(0).log() - theirs.var(0).log()).abs().max() < 5.5 * 2 / draws**0.5
    correlation = torch.corrcoef(ours.T) - torch.eye(4)
    assert correlation.abs().max() < 5.5 / draws**0.5


def test_more_examples_than_positions():
    """Rows of (sequence, batch): four examples of two positions each, and no two examples of four."""
    batch = Dim("batch", min=1)
    program = export(Encoder(sequence_first=True).eval(), (torch.randn(2, 3, 8),), dynamic_shapes=({1: batch},))
    model = bayesify.convert(program, {"rules": [{"targets": ["re:.*self_attn"]}]})
    bayesify.set_posterior_std(model, 0.05)
    model.requires_grad_(False)
    x = torch.randn(2, 1, 8).expand(2, 4, 8)  # equal examples, whose outputs one draw would make equal
    found = deltas(lambda: (model(x) * torch.arange(3)).sum((0, 2)), 1000)
    assert (torch.corrcoef(found.T) - torch.eye(4)).abs().max() < 5.5 / 1000**0.5


def test_a_length_is_no_batch():
    """All positions of the one example see one draw."""
    program = export(GPT().eval(), (torch.zeros(1, 6).long(),), dynamic_shapes=({1: Dim("length", min=2, max=32)},))
    model, ids = bayesify.convert(program, {"rules": [{"targets": ["head"]}]}), torch.zeros(1, 5).long()
    model.requires_grad_(False)
    model.wpe.weight.zero_()  # equal positions, so that equal draws give equal outputs
    logits = model(ids)["logits"][0]
    torch.testing.assert_close(logits, logits[:1].expand_as(logits))


def test_one_weight_is_noisy_in_all_its_products_or_in_none():
    class Odd(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.known, self.other = torch.nn.Linear(4, 4, bias=False), torch.nn.Linear(4, 4)
            self.odd = torch.nn.Module()
            self.odd.weight = self.known.weight

        def forward(self, x):
            y = torch.tanh(self.known(x))
            return self.other(torch.einsum("bi,oi,bo->bo", y, self.odd.weight, y))

    rows = bayesify.plan(export(Odd().eval(), (torch.randn(3, 4),))).rows
    verbs = {row.name: row.verb for row in rows}
    assert (verbs["known"], verbs["other"]) == ("blocked", "converts")


def test_a_pickled_program_still_looks_for_its_examples():
    x = torch.randn(3, 4, 4, 4)
    model = bayesify.convert(export(Windows().eval(), (x,)), example_inputs=x)
    assert model.qkv._settings.rows == 4
    assert watched_arguments(pickle.loads(pickle.dumps(model))) == watched_arguments(model) != ()
