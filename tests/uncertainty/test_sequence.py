"""Language models: `sequence` against a loop over sampled networks, with and without the cache."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import bayesify
from bayesify.errors import UsageError
from tests.support import METHODS


class LanguageModel(nn.Module):
    """Logits as a plain tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(20, 8)
        self.rnn = nn.GRU(8, 12, batch_first=True)
        self.head = nn.Linear(12, 20)

    def forward(self, ids: Tensor) -> Tensor:
        y: Tensor = self.head(self.rnn(self.table(ids))[0])
        return y


class Translator(LanguageModel):
    """Its texts have sources."""

    def forward(self, input_ids: Tensor, decoder_input_ids: Tensor) -> Tensor:
        return super().forward(decoder_input_ids)


def noisy(plain: nn.Module, method: str, std: float = 0.2) -> Any:
    model = bayesify.convert(plain.eval(), method)
    bayesify.set_posterior_std(model, std)
    return model


@pytest.mark.parametrize("method", METHODS)
def test_against_a_loop_over_sampled_networks(method: str) -> None:
    model, ids = noisy(LanguageModel(), method), torch.randint(20, (3, 7))
    found = bayesify.sequence(model, ids, samples=6, seed=3)
    torch.manual_seed(3)
    with torch.no_grad():
        logs = torch.stack([bayesify.sample(model)(ids) for _ in range(6)]).double()[:, :, :-1].log_softmax(-1)
    own = logs.gather(-1, ids[None, :, 1:, None].expand(6, -1, -1, -1)).squeeze(-1)
    each, mean = torch.distributions.Categorical(logits=logs), logs.exp().mean(0)
    for ours, expected in {
        found.log_prob: own.logsumexp(0) - torch.tensor(6.0).log(),
        found.total: torch.distributions.Categorical(mean).entropy(),
        found.predictive_entropy: torch.distributions.Categorical(mean).entropy(),
        found.aleatoric: each.entropy().mean(0),
        found.mutual_information: torch.distributions.Categorical(mean).entropy() - each.entropy().mean(0),
        found.sequence_log_prob: own.sum(-1).logsumexp(0) - torch.tensor(6.0).log(),
        found.sequence_log_prob_variance: own.sum(-1).var(0),
        found.sequence_epistemic: (torch.distributions.Categorical(mean).entropy() - each.entropy().mean(0)).sum(1),
    }.items():
        torch.testing.assert_close(ours.double(), expected, rtol=1e-3, atol=1e-5)
    assert torch.equal(found.total, found.aleatoric + found.epistemic)
    torch.testing.assert_close(found.sequence_total, found.sequence_aleatoric + found.sequence_epistemic)
    halved = pytree.tree_map(lambda tensor: tensor[:1], found)
    assert torch.equal(halved.sequence_total, found.sequence_total[:1])


@pytest.fixture
def causal(vision: Any) -> Any:
    pytest.importorskip("transformers")
    from transformers import LlamaConfig, LlamaForCausalLM

    size: Any = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    return LlamaForCausalLM(LlamaConfig(vocab_size=50, num_key_value_heads=1, **size))


@pytest.mark.skipif(find_spec("transformers") is None, reason="transformers is not installed")
@pytest.mark.parametrize("method", METHODS)
def test_generation_with_a_cache_is_the_single_pass(causal: Any, method: str) -> None:
    model, ids = noisy(causal, method, 0.1), torch.randint(1, 50, (3, 5))
    options: Any = {"max_new_tokens": 10, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    with torch.no_grad(), bayesify.draw(model, seed=1):
        made = model.generate(ids, output_logits=True, return_dict_in_generate=True, **options)
        whole = model(made.sequences).logits[:, 4:-1]
    torch.testing.assert_close(torch.stack(made.logits, 1), whole, rtol=0.0, atol=1e-6 * float(whole.abs().max()))
    with torch.no_grad(), bayesify.draw(model, seed=2):
        assert not torch.allclose(model(made.sequences).logits[:, 4:-1], whole, atol=1e-3)


@pytest.mark.skipif(find_spec("transformers") is None, reason="transformers is not installed")
def test_in_passes_with_the_cache(causal: Any) -> None:
    model, ids = noisy(causal, "flipout", 0.1), torch.randint(1, 50, (2, 9))
    whole = bayesify.sequence(model, ids, samples=4, seed=1)
    for chunk in (1, 4, 9, 20):
        parts = bayesify.sequence(model, ids, samples=4, seed=1, chunk=chunk)
        for one, other in zip(pytree.tree_leaves(parts), pytree.tree_leaves(whole), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(find_spec("transformers") is None, reason="transformers is not installed")
@pytest.mark.parametrize("chunk", [None, 3])
def test_padding_does_not_count(causal: Any, chunk: int | None) -> None:
    model, ids = noisy(causal, "flipout", 0.1), torch.randint(1, 50, (1, 6))
    alone = bayesify.sequence(model, ids, samples=4, seed=1)
    padded = torch.cat([ids, torch.zeros(1, 3, dtype=torch.int64)], 1)
    mask = (torch.arange(9) < 6)[None].long()
    found = bayesify.sequence(model, padded, mask, samples=4, seed=1, chunk=chunk)
    torch.testing.assert_close(found.sequence_log_prob, alone.sequence_log_prob)
    torch.testing.assert_close(found.sequence_epistemic, alone.sequence_epistemic, rtol=1e-3, atol=1e-5)
    assert found.total[:, 5:].abs().max() == 0
    assert found.valid.tolist() == [[True] * 5 + [False] * 3]


def test_what_cannot_be_meant_is_refused() -> None:
    model, ids = noisy(LanguageModel(), "flipout"), torch.randint(20, (3, 7))
    for message, arguments in {
        "samples=1": {"samples": 1},
        "chunk=0": {"chunk": 0},
        "pad on the right": {"attention_mask": torch.tensor([[0, 1, 1, 1, 1, 1, 1]] * 3)},
    }.items():
        with pytest.raises(UsageError, match=message):
            bayesify.sequence(model, ids, **arguments)
    for wrong in (ids[0], ids[:, :1], ids.float()):
        with pytest.raises(UsageError, match="token numbers"):
            bayesify.sequence(model, wrong)
    with pytest.raises(UsageError, match="not a list"):
        bayesify.sequence(model, ids.tolist())
    translator = noisy(Translator(), "flipout")
    with pytest.raises(UsageError, match=r"has an encoder and a decoder.*predict"):
        bayesify.sequence(translator, ids)
    headless = noisy(nn.Sequential(nn.Embedding(20, 8), nn.Flatten(), nn.Linear(56, 3)), "flipout")
    with pytest.raises(UsageError, match=r"should be \(texts, length, words\), and are \(3, 3\)"):
        bayesify.sequence(headless, ids)


def test_what_a_tokenizer_gives_is_taken_as_it_is() -> None:
    class Masked(LanguageModel):
        def forward(self, ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
            return super().forward(ids)

    model, ids = noisy(Masked(), "flipout"), torch.randint(20, (2, 6))
    mask = torch.tensor([[1, 1, 1, 1, 0, 0], [1] * 6])
    expected = bayesify.sequence(model, ids, mask, samples=2, seed=1)
    found = bayesify.sequence(model, {"input_ids": ids, "attention_mask": mask}, samples=2, seed=1)
    assert torch.equal(found.total, expected.total)
    assert torch.equal(found.valid, expected.valid)
