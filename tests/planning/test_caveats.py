"""Notes of a plan: what a reader should know of a layer that converts."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

import bayesify
from bayesify.planning.planner import plan
from tests.nets import Tangled
from tests.planning.rows import rows_of


def notes_of(model: nn.Module, name: str, policy: Any = "lrt") -> str:
    return "; ".join(rows_of(model, policy)[name].notes)


def test_notes_on_calls() -> None:
    assert "called 2 times" in notes_of(Tangled(), "a", "flipout")
    assert "each of its calls draws anew" in notes_of(Tangled(), "a", "flipout")
    assert "draws anew" not in notes_of(Tangled(), "a", "lrt")  # which says more
    assert "called" not in notes_of(Tangled(), "twin", "flipout")
    assert "never called in the traced forward (train mode)" in notes_of(Tangled(), "spare", "flipout")
    assert "never called in the traced forward (eval mode)" in notes_of(Tangled().eval(), "spare", "flipout")


class Remembers(nn.Module):
    def __init__(self, cell: bool) -> None:
        super().__init__()
        self.fc, self.cell, self.state, self.mask = nn.Linear(2, 2), cell, None, None

    def forward(self, x: Any) -> Any:
        if self.mask is None:
            self.mask = torch.ones(2)
        y = self.fc(x * self.mask)
        self.last = y  # for whoever looks at it
        self.mask = self.mask.to(y.device, y.dtype)  # of what layers gave, no value
        if self.cell:
            y = y if self.state is None else y + self.state
            self.state = y.detach()
        return y


def test_a_note_on_state_that_is_kept_from_call_to_call() -> None:
    expected = "Remembers keeps self.state from call to call, each of which draws anew"
    assert expected in notes_of(Remembers(True), "fc", "flipout")
    assert expected in notes_of(Remembers(True), "fc")
    assert notes_of(Remembers(False), "fc", "flipout") == ""


def test_notes_on_where_lrt_is_approximate() -> None:
    model = nn.Sequential(nn.Conv1d(2, 2, 1), nn.Flatten(), nn.Linear(2, 2))
    assert notes_of(model, "0") == "approximate: LRT ignores that all positions share one kernel"
    assert notes_of(model, "0", "flipout") == notes_of(model, "2") == ""
    assert "share one weight" in notes_of(Tangled(), "a")
    assert "share one weight" not in notes_of(Tangled(), "a", "flipout")
    assert "approximate where its input is a sequence" in notes_of(Tangled(), "spare")


def test_notes_on_layouts() -> None:
    first = nn.Sequential(nn.TransformerEncoderLayer(4, 2, 8))
    assert notes_of(first, "0.linear1", "flipout") == "examples along dimension 1"
    assert "position" in notes_of(first, "0.linear1", {"method": "flipout", "signs": "position"})
    assert notes_of(nn.Sequential(nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)), "0.linear1", "flipout") == ""

    class Own(nn.Module):
        def __init__(self, batch_first: bool) -> None:
            super().__init__()
            self.attn, self.mlp = nn.MultiheadAttention(4, 2, batch_first=batch_first), nn.Sequential(nn.Linear(4, 4))

    class WindowAttention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.window_size, self.qkv = (2, 2), nn.Linear(4, 4)

    assert "as '0.attn' beside it takes it" in notes_of(nn.Sequential(Own(False)), "0.mlp.0", "flipout")
    assert notes_of(nn.Sequential(Own(True)), "0.mlp.0", "flipout") == ""
    assert "each window has signs of its own" in notes_of(nn.Sequential(WindowAttention()), "0.qkv", "flipout")


def test_notes_on_recurrent_layers() -> None:
    beside = "approximate if its input is (sequence, batch, ...), as 'lstm' beside it takes it"
    for batch_first in (False, True):
        layers = {"lstm": nn.LSTM(2, 2, batch_first=batch_first), "decoder": nn.Linear(2, 2), "cell": nn.GRUCell(2, 2)}
        model = nn.ModuleDict(layers)
        assert notes_of(model, "decoder", "flipout").startswith("" if batch_first else beside)
        assert bool(notes_of(model, "decoder", "flipout")) != batch_first
        assert notes_of(model, "lstm", "flipout") == ""
        assert "approximate: LRT draws per time step" in notes_of(model, "lstm", "lrt")
        assert notes_of(model, "cell", "flipout").startswith("a cell draws anew at each call")
    inside = nn.TransformerEncoderLayer(2, 2, 2)
    inside.linear1 = nn.LSTM(2, 2)  # type: ignore[assignment]
    assert notes_of(nn.Sequential(inside), "0.linear1", "flipout") == ""
    assert notes_of(nn.ModuleDict({"attn": nn.MultiheadAttention(2, 2)}), "attn", "flipout") == ""


def test_modules_that_are_held_past_registration_are_named() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    model.listed = [nn.ReLU(), nn.Sequential(nn.Linear(2, 2)), model[0]]  # type: ignore[assignment]
    model.kept = {"x": nn.Linear(2, 2)}  # type: ignore[assignment]
    rows = rows_of(model)
    assert rows.keys() == {"0", "listed[1].0", "kept['x']"}
    assert all("not registered" in str(rows[name].reason) for name in ("listed[1].0", "kept['x']"))
    assert plan(model).totals["parameters_before"] == 6
    assert type(bayesify.convert(model).listed[1][0]) is nn.Linear  # type: ignore[index]


class Policy(nn.Module):
    """Its methods beside forward use weights in several ways."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.own = nn.Linear(4, 4), nn.Linear(4, 4), nn.Parameter(torch.ones(4, 4))

    def forward(self, x: Any) -> Any:
        return self._finished(self.b(self.a(x)))

    def _finished(self, x: Any) -> Any:
        return x @ self.own

    def generate(self, x: Any) -> Any:
        return torch.nn.functional.linear(x, self.a.weight)

    def encode(self, x: Any) -> Any:
        return self.a(x) @ self.own

    def shape_of(self, x: Any) -> Any:
        return x.view(-1, self.b.weight.shape[1]) @ x

    def tie(self) -> None:
        self.b.weight = self.a.weight

    def reset(self) -> None:
        nn.init.orthogonal_(self.b.weight)

    def penalty(self) -> Any:
        return self.b.weight.norm()

    def evaluate(self, x: Any) -> Any:
        return self.b(self.a(x)), x @ x.t()


class OwnCall(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 4)

    def __call__(self, x: Any) -> Any:
        return x @ self.a.weight.t()

    def forward(self, x: Any) -> Any:
        return self.a(x)


def test_notes_on_methods_that_multiply_beside_the_forward() -> None:
    without = "by it without noise, which only forward() has"
    assert notes_of(Policy(), "a", "flipout") == f"Policy.generate() multiplies {without}"
    assert notes_of(nn.Sequential(Policy()), "0", "flipout") == f"Policy.encode() multiplies {without}"
    assert notes_of(Policy(), "b", "flipout") == ""
    assert notes_of(OwnCall(), "a", "flipout") == f"OwnCall.__call__() multiplies {without}"
