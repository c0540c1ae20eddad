"""Conversion takes the memory of what it adds, and no more."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bayesify
from bayesify.surgery import rewrite as surgery


def storages(model: nn.Module) -> dict[int, int]:
    found = [parameter.untyped_storage() for parameter in [*model.parameters(), *model.buffers()]]
    return {each.data_ptr(): each.nbytes() for each in found}


def alive() -> list[Tensor]:
    gc.collect()
    # exact types: what a compiler traced with and left behind has no memory; a sparse tensor has no storage of its own
    tensors = (value for value in gc.get_objects() if type(value) in (Tensor, nn.Parameter))
    return (tensor for tensor in tensors if not tensor.is_meta and tensor.layout is torch.strided)


@pytest.mark.parametrize(("mean", "copies"), [("zero", 1), ("pretrained", 2)])
def test_a_big_model_converts_in_place_without_another_copy(mean: str, copies: int) -> None:
    model = nn.Sequential(*(nn.Linear(1024, 1024) for _ in range(16)), nn.Embedding(1024, 1024))
    weights = storages(model)
    before = {tensor.untyped_storage().data_ptr() for tensor in alive()}
    bayesify.convert(model, {"method": "flipout", "prior": {"mean": mean, "std": 1.0}}, inplace=True)
    after = storages(model)
    assert weights.items() <= after.items()
    assert sum(after.values()) - sum(weights.values()) == copies * 16 * 4 * 1024**2
    big = (tensor.untyped_storage() for tensor in alive() if tensor.untyped_storage().nbytes() >= 4 * 1024**2)
    left = {storage.data_ptr() for storage in big} - before
    assert left <= after.keys()


def test_conversion_itself_peaks_at_little_more_than_what_it_adds(monkeypatch: pytest.MonkeyPatch) -> None:
    """All big tensors that are made on the way are counted while they live."""
    model = nn.Sequential(*(nn.Linear(1024, 1024) for _ in range(4)))
    peaks: list[int] = []
    original = surgery.posterior_tensors

    def counting(*args: Any) -> Any:
        made = original(*args)
        peaks.append(
            sum({tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in alive()}.values())
        )
        return made

    monkeypatch.setattr(surgery, "posterior_tensors", counting)
    bayesify.convert(model, inplace=True)
    gc.collect()
    final = sum({tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in alive()}.values())
    assert max(peaks) <= final + 4 * 1024**2
