"""Weights fit strictly: each difference is named, and what may differ is named by the user."""

import re
import time

import pytest
import torch
from torch import nn

from bayesify.errors import FileRefusedError
from bayesify.files.fit_weights import fit
from bayesify.files.read_weights import Weights
from tests.files.made_files import net


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.emb, self.head = nn.Embedding(5, 4), nn.Linear(4, 5, bias=False)
        self.head.weight = self.emb.weight


def on_meta(build):
    with torch.device("meta"):
        return build()


@pytest.fixture(params=["copied", "assigned"])
def fresh(request):
    """`fresh(build)` -> a model to load into, real or on meta."""
    return on_meta if request.param == "assigned" else lambda build: build()


def test_a_fitting_state_dict_is_loaded(fresh):
    state, model = {name: value + 1 for name, value in net().state_dict().items()}, fresh(net)
    model.eval()
    model[0].weight.requires_grad_(False)
    fit(model, Weights(state), source="w.pt")
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert not model.training
    assert not model[0].weight.requires_grad
    assert model[3].weight.requires_grad


def test_half_precision_weights_become_the_models(fresh):
    state, model = net().half().state_dict(), fresh(net)
    fit(model, Weights(state), source="w.pt")
    assert {value.dtype for value in model.parameters()} == {torch.float32}
    assert torch.equal(model[0].weight, state["0.weight"].float())
    assert model[1].num_batches_tracked.dtype == torch.int64


@pytest.mark.parametrize("kept", [("emb.weight", "head.weight"), ("emb.weight",), ("head.weight",)])
def test_tied_weights_stay_tied_and_need_one_name(kept, fresh):
    weight, model = torch.randn(5, 4), fresh(Tied)
    fit(model, Weights(dict.fromkeys(kept, weight)), source="w.pt")
    assert model.emb.weight is model.head.weight
    assert torch.equal(model.emb.weight, weight)
    assert len(list(model.parameters())) == 1


def test_weights_that_share_memory_in_the_file_do_not_in_the_model(fresh):
    model = fresh(lambda: nn.ModuleList([nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)]))
    weight = torch.randn(3, 3)
    expected = weight.clone()
    fit(model, Weights({"0.weight": weight, "1.weight": weight}), source="w.pt")
    with torch.no_grad():
        model[0].weight.zero_()
    assert torch.equal(model[1].weight, expected)


def refusal(model, state, **kwargs) -> str:
    with pytest.raises(FileRefusedError) as caught:
        fit(model, Weights(state), source="w.pt", **kwargs)
    text = str(caught.value)
    assert text.startswith("w.pt doesn't fit the model: ")
    assert "\n" not in text
    return text


def test_missing_unexpected_and_misshapen_names_are_listed(fresh):
    state = net().state_dict()
    state["0.weigth"] = state.pop("0.weight")
    state["3.bias"] = torch.ones(7)
    text = refusal(fresh(net), state)
    assert "misses 1 (0.weight; did you mean '0.weigth'?)" in text
    assert "has unexpected 1 (0.weigth)" in text
    assert "3.bias is 7, the model's 2)" in text
    text = refusal(fresh(net), {name: torch.ones(9, 9) for name in net().state_dict()})
    listed = re.findall(r"([\w.]+) is 9x9", text)
    assert listed == list(net().state_dict())[: len(listed)]
    assert len(listed) > 3
    many = {f"extra.{index}": torch.ones(1) for index in range(30)}
    assert "has unexpected 30 (extra.0, " in refusal(fresh(net), {**net().state_dict(), **many})
    assert "and 20 more" in refusal(fresh(net), {**net().state_dict(), **many})


def test_ignore_keys_lets_named_ones_pass(fresh):
    state = net().state_dict()
    del state["3.weight"]
    state["3.bias"] = torch.ones(7)
    state["head.weight"] = torch.ones(1)
    refusal(fresh(net), dict(state), ignore_keys=["3.*"])
    model = fresh(net)
    fit(model, Weights(dict(state)), ignore_keys=["3.*", "head.*"], source="w.pt")
    assert torch.equal(model[0].weight, state["0.weight"])
    assert model[3].bias.shape == (2,)


def test_a_model_with_a_module_of_its_own_gets_its_prefix_back(fresh):
    state = net().state_dict()
    model = fresh(lambda: nn.ModuleDict({"module": net()}))
    fit(model, Weights(state, stripped=("module.",)), source="w.pt")
    assert torch.equal(model["module"][0].weight, state["0.weight"])


def test_a_lazy_model_takes_its_shapes_from_the_weights():
    model = nn.Sequential(nn.LazyLinear(3))
    fit(model, Weights(nn.Sequential(nn.Linear(5, 3)).state_dict()), source="w.pt")
    assert model[0].weight.shape == (3, 5)


def test_old_weights_without_batch_counters(fresh):
    state = {name: value for name, value in net().state_dict().items() if "num_batches" not in name}
    model = fresh(net)
    fit(model, Weights(state), source="w.pt")
    assert model[1].num_batches_tracked.item() == 0


MANY = [f"w{number}" for number in range(40_000)]
LONG = [f"{'a.' * 20_000}{number}" for number in range(500)]


@pytest.mark.parametrize("names", [MANY, LONG], ids=["many", "long"])
def test_names_of_a_file_are_compared_quickly(names):
    weights = Weights({name: torch.empty(0) for name in names})
    begin = time.process_time()
    with pytest.raises(FileRefusedError, match="unexpected"):
        fit(net(), weights, source="w.pt")
    assert time.process_time() - begin < 3
