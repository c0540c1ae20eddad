"""Embeddings, recurrent layers and cells: one operator in a program, and layers again in its plan."""

import copy
import pickle

import pytest
import torch
from torch import fx, nn
from torch.export import Dim, export

import bayesify
from bayesify.files.load_model import load_model as load
from bayesify.files.save import save
from bayesify.files.untrusted.exported_archive import open_program


class Words(nn.Module):
    """A table, a recurrent layer over (steps, words, channels) or (words, steps, channels), and a head."""

    def __init__(self, layer):
        super().__init__()
        self.table, self.layer = nn.Embedding(11, 4, padding_idx=0), layer
        self.head = nn.Linear(4 if layer.proj_size else 6 * (1 + layer.bidirectional), 3)

    def forward(self, ids):
        x = self.table(ids)
        output, state = self.layer(x if self.layer.batch_first else x.transpose(0, 1))
        return self.head(output if self.layer.batch_first else output.transpose(0, 1)), state


class Cells(nn.Module):
    def __init__(self):
        super().__init__()
        self.long, self.gated, self.plain = nn.LSTMCell(4, 6), nn.GRUCell(6, 6), nn.RNNCell(6, 6, nonlinearity="relu")

    def forward(self, ids):
        hidden, cell = self.long(ids[:, :1] * torch.ones(4))
        return self.plain(self.gated(hidden, cell), hidden), cell


RECURRENT = {
    "LSTM": lambda: nn.LSTM(4, 6, 2, bidirectional=True, dropout=0.5),
    "LSTM with projections": lambda: nn.LSTM(4, 6, proj_size=4, batch_first=True),
    "GRU": lambda: nn.GRU(4, 6, batch_first=True, bias=False),
    "RNN": lambda: nn.RNN(4, 6, batch_first=True, nonlinearity="relu"),
}
MODELS = {name: lambda make=make: Words(make()) for name, make in RECURRENT.items()} | {"cells": Cells}
POLICY = {"rules": [{"targets": ["type:Embedding"]}, {"targets": ["*"]}]}


def exported(name):
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    return model, export(model, (torch.randint(11, (3, 5)),), dynamic_shapes=({0: Dim("batch", min=1)},))


def flat(output):
    return torch.utils._pytree.tree_leaves(output)


@pytest.mark.parametrize("method", ["flipout", "lrt"])
@pytest.mark.parametrize("name", MODELS)
def test_they_convert_from_the_file(name, method, tmp_path):
    model, program = exported(name)
    torch.export.save(program, tmp_path / "m.pt2")
    opened = open_program(tmp_path / "m.pt2")
    policy = {"method": method, **POLICY} if name != "cells" else method
    converted = bayesify.convert(opened, policy)
    rows = {row.name: row for row in bayesify.plan(opened, policy).converting()}
    plain = {name: type(module).__name__ for name, module in model.named_children()}
    assert {name: row.type for name, row in rows.items()} == plain
    ids = torch.randint(1, 11, (4, 5))
    save(converted, tmp_path / "m.pt")
    for layer in (converted, copy.deepcopy(converted), pickle.loads(pickle.dumps(converted)), load(tmp_path / "m.pt")):
        with bayesify.posterior_mean(layer):
            assert all(torch.equal(*pair) for pair in zip(flat(layer(ids)), flat(program.module()(ids)), strict=True))
        assert not torch.equal(flat(layer(ids))[0], flat(layer(ids))[0])
        assert torch.equal(layer.kl(), converted.kl())
        layer.zero_grad()
        sum((value * torch.randn_like(value)).sum() for value in flat(layer(ids))).backward()
        scales = {name: value.grad for name, value in layer.named_parameters() if name.endswith("_rho")}
        assert all(value is not None and value.abs().sum() > 0 for name, value in scales.items() if name != _UNMOVED)


_UNMOVED = "long.weight_hh_rho"  # its state is zero


@pytest.mark.parametrize("name", ["LSTM", "GRU"])
def test_an_example_is_a_sequence_in_either_layout(name):
    _, program = exported(name)
    converted = bayesify.convert(program, {"rules": [{"targets": ["layer"]}]}).requires_grad_(False)
    bayesify.set_posterior_std(converted, 0.05)
    ids = torch.randint(11, (3, 5))
    draws = torch.stack([converted(ids)[0].sum((1, 2)) for _ in range(1000)])
    assert (torch.corrcoef(draws.T) - torch.eye(3)).abs().max() < 5.5 / 1000**0.5


def test_a_table_is_left_alone_until_a_rule_names_it():
    _, program = exported("GRU")
    row = {row.name: row for row in bayesify.plan(program).rows}["table"]
    assert (row.verb, row.type) == ("keeps", "Embedding")


def test_dropout_between_layers_stays_as_it_was_exported():
    torch.manual_seed(0)
    model = Words(nn.LSTM(4, 6, 2, dropout=0.5, batch_first=True)).train()
    program = export(model, (torch.randint(11, (3, 5)),))
    row = {row.name: row for row in bayesify.plan(program).rows}["layer"]
    assert row.verb == "blocked"
    assert "in a form that no layer of torch has" in row.reason


def test_a_table_that_the_program_multiplies_by_is_no_layer():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(11, 4)

        def forward(self, ids):
            return nn.functional.linear(self.table(ids).tanh(), self.table.weight)

    program = export(Tied(), (torch.randint(11, (3, 5)),))
    model, ids = bayesify.convert(program), torch.randint(11, (3, 5))
    with bayesify.posterior_mean(model):
        assert torch.equal(model(ids), program.module()(ids))
    model(ids).sum().backward()
    assert model.table.weight_rho.grad.abs().sum() > 0


def test_a_graph_with_recurrent_operators_converts():
    model, program = exported("GRU")
    graph, ids = program.module(), torch.randint(11, (3, 5))
    assert isinstance(graph, fx.GraphModule)
    converted = bayesify.convert(graph)
    assert {name for name, _ in bayesify.variational_layers(converted)} == {"layer", "head"}
    with bayesify.posterior_mean(converted):
        assert torch.equal(converted(ids)[0], model(ids)[0])
