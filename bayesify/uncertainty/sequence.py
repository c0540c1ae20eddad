"""How sure a language model is of a text: for each token, and for the whole of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ..errors import UsageError
from ..estimators.precision import widened
from ..nn.kl import layers_of
from .calls import forward_parameters
from .draws import draw
from .measures import triple
from .outputs import picked
from .passes import undisturbed
from .streaming import LogMean, Moments


@dataclass(frozen=True)
class SequencePrediction:
    """What a language model says of given texts over its posterior; nats, float32. A pytree.

    Column t is about token t + 1 given those up to t: (texts, length - 1). Zero where that token is padding.

    Attributes:
        log_prob: log of the mean over draws of the token's probability.
        total: the entropy of the next token's predictive distribution.
        aleatoric: its expected entropy, under one draw.
        epistemic: the mutual information of token and weights: total = aleatoric + epistemic.
        valid: which columns are not about padding.
        sequence_log_prob: log of the mean over draws of the text's probability, (texts).
        sequence_log_prob_variance: the variance over draws of the text's log-probability, unbiased, (texts).
    """

    log_prob: Tensor
    total: Tensor
    aleatoric: Tensor
    epistemic: Tensor
    valid: Tensor
    sequence_log_prob: Tensor
    sequence_log_prob_variance: Tensor

    @property
    def predictive_entropy(self) -> Tensor:
        """`total` by the name that papers on language models have for it (Malinin & Gales 2021, section 3)."""
        return self.total

    @property
    def mutual_information(self) -> Tensor:
        """`epistemic` by that name."""
        return self.epistemic

    @property
    def sequence_total(self) -> Tensor:
        """`total` summed over each text, (texts): nats along this text, as `sequence_aleatoric` + `_epistemic`."""
        return self.total.sum(1)

    @property
    def sequence_aleatoric(self) -> Tensor:
        """`aleatoric` summed over each text, (texts)."""
        return self.aleatoric.sum(1)

    @property
    def sequence_epistemic(self) -> Tensor:
        """`epistemic` summed over each text, (texts)."""
        return self.epistemic.sum(1)


def sequence(
    model: nn.Module, ids: Tensor | Mapping[str, Tensor], attention_mask: Tensor | None = None, *, samples: int = 32,
    seed: int | None = None, chunk: int | None = None,
) -> SequencePrediction:  # fmt: skip
    """The uncertainty of a causal language model about given texts, token by token and as a whole.

    Each draw of the weights is held over the text, so that all of its tokens are judged by one model (Malinin & Gales
    2021). Memory is that of one pass, and one tensor of the logits' size.

    Args:
        model: takes ids (texts, length), gives logits (texts, length, words): a tensor, or an output's `logits`.
        ids: token numbers; or what a tokenizer gives, with `input_ids` and perhaps `attention_mask`.
        attention_mask: 0 where a text is padded, on the right.
        samples: how many draws, at least 2.
        seed: makes the draws reproducible, and leaves the global generators as they were.
        chunk: the most tokens of one pass; the model's key and value cache carries over to the next.

    Raises:
        UsageError: ids, mask, samples or chunk are not of their form, or the model gives no logits or no cache.
        NotVariationalError: the model has no variational layer.
    """
    tokens, mask = _texts(ids, attention_mask)
    _refuse_wrong(model, tokens, mask, samples, chunk)
    valid = torch.ones_like(tokens[:, 1:], dtype=torch.bool) if mask is None else mask[:, 1:].bool()
    mean, entropy, token, text, spread = LogMean(), Moments(), LogMean(), LogMean(), Moments()
    with undisturbed(model, seed):
        for _ in range(samples):
            with draw(model):
                logs = torch.log_softmax(widened(_logits(model, tokens, mask, chunk)[:, :-1]), -1)
            own = logs.gather(-1, tokens[:, 1:, None]).squeeze(-1).masked_fill(~valid, 0)
            token.add(own[None])
            text.add(own.sum(1)[None])
            spread.add(own.sum(1)[None])
            mean.add(logs[None])
            entropy.add(_entropy(logs)[None])
    aleatoric = entropy.mean
    parts = triple(aleatoric, (_entropy(mean.value) - aleatoric).clamp_min_(0))
    parts = {name: part.masked_fill(~valid, 0) for name, part in parts.items()}
    of_texts = {"sequence_log_prob": text.value, "sequence_log_prob_variance": spread.variance}
    return SequencePrediction(token.value, **parts, valid=valid, **of_texts)


def _texts(ids: Any, mask: Tensor | None) -> tuple[Any, Tensor | None]:
    """The token numbers and their mask, out of what a tokenizer gives too."""
    if not isinstance(ids, Mapping):
        return ids, mask
    return ids.get("input_ids"), ids.get("attention_mask") if mask is None else mask


def _entropy(logs: Tensor) -> Tensor:
    """In nats, of log-probabilities along the last dimension."""
    entropy: Tensor = torch.special.entr(logs.exp()).sum(-1)
    return entropy


def _logits(model: nn.Module, ids: Tensor, mask: Tensor | None, chunk: int | None) -> Tensor:
    """(texts, length, words), in passes of so many tokens."""
    length = ids.shape[1]
    if chunk is None or chunk >= length:
        known = {} if mask is None else {"attention_mask": mask}
        return _logits_of(model(ids, **known), ids)
    return torch.cat(list(_cached(model, ids, mask, chunk)), 1)


def _cached(model: nn.Module, ids: Tensor, mask: Tensor | None, chunk: int) -> Iterator[Tensor]:
    name = "cache" if "cache" in forward_parameters(model) else "past_key_values"  # by transformers' age
    cache = None
    for start in range(0, ids.shape[1], chunk):
        own = ids[:, start : start + chunk]
        known = {} if mask is None else {"attention_mask": mask[:, : start + chunk]}
        output = model(own, use_cache=True, **{name: cache}, **known)
        cache = picked(output, name)
        yield _logits_of(output, own)


def _logits_of(output: Any, ids: Tensor) -> Tensor:
    place = 0 if isinstance(output, tuple | list) else "logits"
    logits = output if isinstance(output, Tensor) else picked(output, place)
    if not isinstance(logits, Tensor) or logits.dim() != 3 or logits.shape[:2] != ids.shape:
        what = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise UsageError(f"the logits for ids {tuple(ids.shape)} should be (texts, length, words), and are {what}")
    return logits


def _refuse_wrong(model: nn.Module, ids: Tensor, mask: Tensor | None, samples: int, chunk: int | None) -> None:
    layers_of(model)
    if "decoder_input_ids" in forward_parameters(model):
        raise UsageError(
            f"{type(model).__name__} has an encoder and a decoder, and sequence is for causal language models: "
            'predict(model, {"input_ids": ..., "decoder_input_ids": ...}, task="classification", output="logits") '
            "gives the uncertainty of each token"
        )
    if not isinstance(ids, Tensor):
        raise UsageError(f"ids are a tensor of token numbers (texts, length), not a {type(ids).__name__}")
    if ids.dim() != 2 or ids.shape[1] < 2 or ids.is_floating_point():
        raise UsageError(f"ids are token numbers (texts, length) of two tokens at least, not {tuple(ids.shape)}")
    if mask is not None and (mask.shape != ids.shape or not (mask[:, :-1] >= mask[:, 1:]).all()):
        raise UsageError("attention_mask is of the ids' shape, with ones first and zeros behind: pad on the right")
    if samples < 2:
        raise UsageError(f"samples={samples}: a spread needs 2 draws at least")
    if chunk is not None and chunk < 1:
        raise UsageError(f"chunk={chunk} is not a number of tokens")


pytree.register_pytree_node(
    SequencePrediction,
    lambda prediction: ([getattr(prediction, field.name) for field in fields(SequencePrediction)], None),
    lambda children, _: SequencePrediction(*children),
    serialized_type_name="bayesify.SequencePrediction",
)
