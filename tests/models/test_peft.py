"""LoRA models of peft: the adapters become variational by the shipped policy, and nothing else does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import bayesify
from bayesify.errors import PolicyError


@pytest.fixture
def peft(vision: Any) -> Any:
    """peft, which imports transformers."""
    return pytest.importorskip("peft")


class Net(nn.Module):
    """Two layers, and a table."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.first = nn.Embedding(7, 6), nn.Linear(6, 6)
        self.conv, self.head = nn.Conv1d(6, 6, 1), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.conv(torch.relu(self.first(self.table(x))).mT).mT)


def adapted(peft: Any, **options: Any) -> Any:
    """A net with adapters that do something."""
    model = peft.get_peft_model(Net(), peft.LoraConfig(r=2, target_modules=["first", "conv", "table"], **options))
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter)
    return model.eval()


ADAPTERS = {f"base_model.model.{layer}.lora_{part}.default" for layer in ("first", "conv") for part in "AB"}


def test_the_adapters_convert_and_nothing_else(peft: Any) -> None:
    plain, x = adapted(peft), torch.randint(7, (4, 5))
    made = bayesify.plan(plain, "lora")
    assert {row.name for row in made.converting()} == ADAPTERS
    rows = {row.name: row for row in made.rows}
    base = rows["base_model.model.first.base_layer"]
    assert base.verb == "blocked"
    assert "the policy `lora` converts its adapters instead" in str(base.reason)
    assert "no rule claims it" in str(rows["base_model.model.head"].reason)
    model = bayesify.convert(plain, "lora")
    with bayesify.posterior_mean(model):
        assert torch.equal(model(x), plain(x))
    model(x).square().sum().backward()
    assert all(layer.scale_of("weight").grad.abs().max() > 0 for _, layer in bayesify.variational_layers(model))
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert all("lora_" in name for name in trained)
    model.kl().backward()
    with model.disable_adapter():
        assert torch.equal(model(x), model(x))
    assert torch.equal(bayesify.revert(model)(x), plain(x))


def test_adapters_save_and_load_by_peft(peft: Any, tmp_path: Path) -> None:
    torch.manual_seed(1)
    model = bayesify.convert(adapted(peft), "lora")
    with torch.no_grad():
        for _, layer in bayesify.variational_layers(model):
            layer.scale_of("weight").add_(torch.rand(()))  # type: ignore[union-attr]
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["peft_type"] == "LORA"
    other = bayesify.convert(adapted(peft), "lora")
    from safetensors.torch import load_file

    peft.set_peft_model_state_dict(other, load_file(tmp_path / "adapter_model.safetensors"))
    assert torch.equal(other.kl(), model.kl())


def test_after_merging_there_is_no_noise_and_before_converting_it_is_refused(peft: Any) -> None:
    plain, x = adapted(peft), torch.randint(7, (4, 5))
    model = bayesify.convert(plain, "lora")
    model.merge_adapter()
    torch.testing.assert_close(model(x), plain(x))
    model.unmerge_adapter()
    assert not torch.equal(model(x), model(x))
    plain.merge_adapter()
    with pytest.raises(PolicyError, match=r"adapter 'default' is merged, and not called: model\.unmerge_adapter"):
        bayesify.convert(plain, "lora")
    with pytest.raises(PolicyError, match=r"of the kind Dora\w+, which reads its weight"):
        bayesify.convert(adapted(peft, use_dora=True), "lora")


def test_an_adapter_that_computes_the_weight_is_blocked(peft: Any) -> None:
    """Its `lora_A` is never called: noise there would be none."""
    model = peft.get_peft_model(Net(), peft.LoraConfig(r=2, target_modules=[], target_parameters=["first.weight"]))
    with pytest.raises(PolicyError, match="ParamWrapper does not call it"):
        bayesify.convert(model, "lora")


def test_adapters_of_bare_parameters_convert_by_their_products(peft: Any) -> None:
    plain = peft.get_peft_model(Net(), peft.AdaLoraConfig(init_r=2, total_step=9, target_modules=["first"])).eval()
    for parameter in plain.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    first = "base_model.model.first"
    rows = {row.name: row for row in bayesify.plan(plain).rows}
    assert {rows[f"{first}.{name}"].verb for name in ("lora_A", "lora_B")} == {"converts"}
    notes = rows[f"{first}.lora_A"].notes
    assert any("one draw of default serves the whole batch" in note for note in notes)  # a gain multiplies it
    model, x = bayesify.convert(plain), torch.randint(7, (4, 5))
    with bayesify.posterior_mean(model):
        assert torch.equal(model(x), plain(x))
    model(x).square().sum().backward()
    assert all(layer.scale_of("default").grad.abs().max() > 0 for _, layer in bayesify.variational_layers(model))
