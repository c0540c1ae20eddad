"""A plan notes that state handed from one call of a model to the next meets another draw."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import bayesify


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)


class Cached(Net):
    def forward(self, x: Any, past_key_values: Any = None) -> Any:
        k = self.a(x) if past_key_values is None else torch.cat([past_key_values, self.a(x)], 1)
        return self.b(k).sum(1), k


class Recurrent(Net):
    def forward(self, x: Any, h: Any) -> Any:
        h = torch.tanh(self.a(x) + h)
        return self.b(h), h


class Carried(Net):
    def forward(self, x: Any, hx: Any) -> Any:
        return torch.tanh(self.a(x) + self.b(hx))


@pytest.mark.parametrize(("kind", "name"), [(Cached, "past_key_values"), (Recurrent, "h"), (Carried, "hx")])
def test_state_from_call_to_call_is_noted_once(kind: Any, name: str) -> None:
    rows = bayesify.plan(kind()).rows
    expected = f"{kind.__name__} is handed {name} from call to call, each of which draws anew: bayesify.draw(model)"
    assert [any(expected in note for note in row.notes) for row in rows] == [True, False]
    assert not any(row.notes for row in bayesify.plan(nn.Sequential(kind())).rows)


def test_a_recurrent_layer_by_itself() -> None:
    assert any("is handed hx" in note for note in bayesify.plan(nn.GRU(3, 4)).rows[0].notes)
    assert not any(row.notes for row in bayesify.plan(nn.ModuleList([nn.GRU(3, 4)])).rows)


class Layers(Net):
    def forward(self, h: Any, scale: float = 1.0) -> Any:
        h = self.a(h)
        return self.b(h) * scale, h


class Graph(Net):
    def forward(self, edges: Any, h: Any) -> Any:
        h = self.a(h)
        h = self.b(h)
        return h


class Masked(Net):
    def forward(self, x: Any, state: Any) -> Any:
        return self.b(self.a(x)) * state, state


@pytest.mark.parametrize("kind", [Layers, Graph, Masked])
def test_other_arguments_say_nothing(kind: Any) -> None:
    assert not any("is handed" in note for row in bayesify.plan(kind()).rows for note in row.notes)


@pytest.mark.parametrize("generates", [True, False])
def test_models_of_transformers_that_generate(vision: Any, generates: bool) -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    if generates:
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=9, **sizes))
    else:
        model = transformers.BertModel(transformers.BertConfig(vocab_size=9, **sizes))
    notes = [note for row in bayesify.plan(model).rows for note in row.notes if "is handed" in note]
    assert [note.split()[3] in ("past_key_values", "cache") for note in notes] == [True] * generates
