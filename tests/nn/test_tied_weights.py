"""Tied weights: one posterior, counted once, through transformers' tying, saving and loading; decoders that read."""

from __future__ import annotations

import json
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bayesify
from bayesify.nn import registry
from bayesify.nn.tied_weights import keep_ties, release_ties
from tests.support import METHODS, draws, judge_mean

TABLES = {"rules": [{"targets": ["Embedding", "Linear"]}]}
NAMES = ("gpt2", "bert", "t5")


@pytest.fixture(params=NAMES)
def case(request: Any, vision: Any) -> tuple[Any, dict[str, Tensor]]:
    """A tiny language model whose decoder is tied to its table, and inputs for it."""
    transformers = pytest.importorskip("transformers")
    transformers.logging.set_verbosity_error()
    ids = torch.randint(0, 50, (3, 6))
    ends = {"bos_token_id": 0, "eos_token_id": 0, "tie_word_embeddings": True}
    if request.param == "gpt2":
        config = transformers.GPT2Config(vocab_size=50, n_positions=8, n_embd=8, n_layer=1, n_head=2, **ends)
        return transformers.GPT2LMHeadModel(config).eval(), {"input_ids": ids}
    if request.param == "bert":
        config = transformers.BertConfig(
            vocab_size=50, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
        )
        return transformers.BertForMaskedLM(config).eval(), {"input_ids": ids}
    config = transformers.T5Config(
        vocab_size=50, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, decoder_start_token_id=0, **ends
    )
    return transformers.T5ForConditionalGeneration(config).eval(), {"input_ids": ids, "decoder_input_ids": ids}


def state_of(model: nn.Module) -> dict[str, Tensor]:
    """Everything that saving would keep."""
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("policy", ["flipout", TABLES], ids=["mean rows", "drawn rows"])
def test_one_posterior_that_transformers_ties_saves_and_loads(case: Any, policy: Any, tmp_path: Path) -> None:
    plain, inputs = case
    model = bayesify.convert(plain, policy)
    head, table = model.get_output_embeddings(), model.get_input_embeddings()
    assert head.weight is table.weight
    assert isinstance(head, bayesify.nn.FlipoutLinear)
    assert type(table) is (nn.Embedding if policy == "flipout" else bayesify.nn.FlipoutEmbedding)
    assert (getattr(table, "weight_rho", head.weight_rho)) is head.weight_rho
    with bayesify.posterior_mean(model):
        assert torch.equal(model(**inputs).logits, plain(**inputs).logits)
    assert not torch.equal(model(**inputs).logits, model(**inputs).logits)
    kl, before = model.kl(), state_of(model)
    model.tie_weights()
    assert head.weight is table.weight
    assert torch.equal(model.kl(), kl)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with torch.no_grad():
        head.weight_rho += 0.5
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == [type(plain).__name__]
    loaded = type(plain).from_pretrained(tmp_path).eval()
    assert torch.equal(loaded(**inputs).logits, plain(**inputs).logits)
    again = bayesify.convert(loaded, policy)
    from safetensors.torch import load_file

    missing, unexpected = again.load_state_dict(load_file(tmp_path / "model.safetensors"), strict=False)
    assert not unexpected
    assert all(again.state_dict()[name].data_ptr() in pointers(again, set(missing)) for name in missing)
    assert torch.equal(again.kl(), model.kl())


def pointers(model: nn.Module, but: set[str]) -> set[int]:
    """Where the model's tensors are, but for some names: what was not in the file is tied to what was."""
    return {value.data_ptr() for name, value in model.state_dict().items() if name not in but}


@pytest.mark.parametrize("method", METHODS)
def test_a_decoder_multiplies_by_the_padding_row_too(method: Any) -> None:
    """The table has no posterior there; the one that both share has."""

    class Padded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.head = nn.Embedding(5, 3, padding_idx=0), nn.Linear(3, 5, bias=False)
            self.head.weight = self.table.weight

        def forward(self, ids: Tensor) -> Any:
            return self.head(self.table(ids))

    model: Any = bayesify.convert(Padded(), {"method": method, **TABLES})
    assert model.head.weight_rho is model.table.weight_rho
    assert model.kl.by_layer().keys() == {"table"}
    torch.testing.assert_close(model.kl(), model.head.kl_divergence())
    assert model.kl() > model.table.kl_divergence()


def test_revert_takes_the_expressions_back(case: Any) -> None:
    plain, _ = case
    back = bayesify.revert(bayesify.convert(plain))
    assert [vars(module).keys() for module in back.modules()] == [vars(module).keys() for module in plain.modules()]
    assert back._tied_weights_keys == plain._tied_weights_keys


class Own(nn.Module):
    """A model with expressions of its own, on the instance."""

    def __init__(self) -> None:
        super().__init__()
        self._tied_weights_keys = {"head.weight": "table.weight", r"list\.\d\.weight": "table.weight"}
        self.table, self.head = nn.Embedding(3, 2), nn.Linear(2, 3)


def test_expressions_on_the_instance_come_back_and_match_no_posterior() -> None:
    model = Own()
    before = dict(model._tied_weights_keys)
    keep_ties(model)
    targets = [re.compile("^" + key) for key in model._tied_weights_keys]
    assert [bool(target.search("head.weight")) for target in targets] == [True, False]
    assert [bool(target.search("list.1.weight")) for target in targets] == [False, True]
    assert not any(target.search(f"{name}.weight_{kind}") for target in targets for name in ("head", "list.1")
                   for kind in ("rho", "log_alpha", "prior_mean", "prior_std"))  # fmt: skip
    release_ties(model)
    assert model._tied_weights_keys == before


class Decoder(nn.Module):
    """It decodes by its table's weight."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(5, 3)

    def forward(self, ids: Tensor) -> Tensor:
        return F.linear(self.table(ids), self.table.weight)


@pytest.mark.parametrize("method", METHODS)
def test_a_decoder_that_reads_the_table_is_noisy_around_mean_rows(method: Any) -> None:
    plain = Decoder().double()
    model: Any = bayesify.convert(plain, {"method": method, "prior": {"mean": "pretrained"}})
    assert model.state_dict().keys() - plain.state_dict().keys() == {"table.weight_rho", "table.weight_prior_mean"}
    bayesify.set_posterior_std(model, 0.5)
    ids = torch.randint(0, 5, (2, 3))
    assert torch.equal(model.table(ids), plain.table(ids))
    spread = draws(model, 4000, ids) - plain(ids).detach()
    variance = plain.table(ids).square() @ torch.full((3, 5), 0.25).double()
    judge_mean("variance", spread.square() / variance.detach(), 1.0)
    if method == "flipout":
        rows = plain.table(ids).detach()
        covariance = torch.einsum("bsi,bti->bst", rows, rows) * 0.25
        judge_mean("covariance", spread[:, :, :, None, 0] * spread[:, :, None, :, 0] / covariance, 1.0)
        judge_mean("other example", spread[:, 0, :, 0] * spread[:, 1, :, 0], 0.0)


@pytest.mark.parametrize("method", METHODS)
def test_a_table_that_is_multiplied_by_is_not_looked_up_with_noise_after_loading(method: str, monkeypatch: Any) -> None:
    """Its class has a variant of its own, which is another thing; a new process knows neither yet."""
    model: Any = bayesify.convert(Decoder(), method)
    pickled, kind = pickle.dumps(model), type(model.table)
    monkeypatch.delitem(vars(registry)["_DERIVED"], kind.__qualname__)
    loaded = pickle.loads(pickled)
    assert type(loaded.table) is not kind
    assert type(loaded.table).__mro__[1:] == kind.__mro__[1:]
    ids = torch.tensor([[1, 2]])
    assert torch.equal(loaded.table(ids), model.table(ids))
    assert not torch.equal(loaded(ids), loaded(ids))
