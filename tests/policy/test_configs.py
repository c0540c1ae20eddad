"""The shipped policies: each is read, fits the schema, and plans a real network as its comments say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from torch import Tensor, nn

import bayesify
from bayesify.distributions.posterior import DEPTH_BUDGET, MOST_RELATIVE, Posterior, Scale
from bayesify.distributions.prior import LogUniform, Normal
from bayesify.policy.policy import Policy
from bayesify.policy.yaml_file import presets


class Block(nn.Module):
    """A basic residual block."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        inner = self.bn1(self.conv1(x)).relu()
        return (self.bn2(self.conv2(inner)) + self.downsample(x)).relu()


class Lora(nn.Module):
    """What peft puts in a linear layer's place."""

    def __init__(self, inner: nn.Linear) -> None:
        super().__init__()
        self.base_layer = inner.requires_grad_(False)
        self.lora_A = nn.ModuleDict({"default": nn.Linear(inner.in_features, 2, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(2, inner.out_features, bias=False)})

    def forward(self, x: Tensor) -> Tensor:
        return self.base_layer(x) + self.lora_B["default"](self.lora_A["default"](x))


class ResNet(nn.Module):
    """A ResNet with torchvision's names: conv1, layer1 to layer4, fc."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        for stage in range(1, 5):
            width = 8 * 2 ** (stage - 1)
            blocks = Block(max(8, width // 2), width, 2), Block(width, width, 1)
            self.add_module(f"layer{stage}", nn.Sequential(*blocks))
        self.fc = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn1(self.conv1(x)).relu()
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)
        return self.fc(x.mean((2, 3)))


LAYERS = 1 + 4 * 2 * 3 + 1
AUTO = Posterior("additive", Scale("relative", DEPTH_BUDGET / LAYERS, floor=0.1))
AROUND = Normal("pretrained", Scale("relative", 3 * DEPTH_BUDGET / LAYERS, floor=0.1))
ALONE = Posterior("additive", Scale("relative", MOST_RELATIVE, floor=0.1))

EXPECTED = {
    "flipout": ("flipout", LAYERS, AUTO, AROUND),
    "lrt": ("lrt", LAYERS, AUTO, AROUND),
    "moped": (
        "flipout",
        LAYERS,
        Posterior("additive", Scale("relative", 0.02)),
        Normal("pretrained", Scale("relative", 0.1)),
    ),
    "last-layer": ("flipout", 1, ALONE, Normal(0.0, Scale("fan_in", 5.0))),
    "sparse": ("flipout", LAYERS, Posterior("multiplicative", Scale("relative", 0.02)), LogUniform()),
    "scratch": (
        "flipout",
        LAYERS,
        Posterior("additive", Scale("fan_in", 0.05)),
        Normal(0.0, Scale("fan_in", 1.4142)),
    ),
}


ADAPTERS = {
    "lora": ("flipout", 2, Posterior("additive", Scale("fan_in", 0.05)), Normal(0.0, Scale("fan_in", 1.0))),
}  # of a network of adapters


def settled(scale: Scale) -> tuple[str, float, float]:
    return scale.kind, round(scale.value, 9), scale.floor


def network(preset: str) -> nn.Module:
    """A residual network, as most presets are for."""
    model = ResNet()
    if preset in ADAPTERS:
        model.fc = Lora(model.fc)  # type: ignore[assignment]
    return model


@pytest.mark.parametrize("name", [*EXPECTED, *ADAPTERS])
def test_a_preset_plans_a_residual_network(name) -> None:
    method, layers, posterior, prior = (EXPECTED | ADAPTERS)[name]
    rows = list(bayesify.plan(network(name), name).converting())
    assert len(rows) == layers
    for row in rows:
        assert row.method == method
        assert row.settings is not None
        found = row.settings
        assert found.posterior.parameterization == posterior.parameterization
        assert settled(found.posterior.init_std) == settled(posterior.init_std)
        assert type(found.prior) is type(prior)
        if isinstance(prior, Normal):
            assert (found.prior.mean, settled(found.prior.std)) == (prior.mean, settled(prior.std))
    assert rows[-1].name == ("fc.lora_B.default" if name in ADAPTERS else "fc")


def test_every_config_is_expected_here_and_says_where_it_came_from() -> None:
    every = [*EXPECTED, *ADAPTERS]
    assert set(presets()) == set(every)
    assert [Policy.parse(name).source for name in every] == every


@pytest.mark.parametrize("path", presets().values(), ids=presets().keys())
def test_a_config_teaches(path: Path) -> None:
    text = path.read_text()
    assert text.startswith("#")
    assert f"--policy {path.stem}" in text
    assert max(map(len, text.splitlines())) <= 120


@pytest.mark.parametrize("path", presets().values(), ids=presets().keys())
def test_the_examples_in_a_configs_comments_work_too(path: Path, tmp_path: Path) -> None:
    """An example stands in a comment block of its own, from a line such as `# rules:` on."""
    text = path.read_text()
    examples = re.findall(r"^# (?:rules|ignore|prior):.*(?:\n#  .*)*", text, re.MULTILINE)
    for example in examples:
        code = re.sub(r"^# ?", "", example, flags=re.MULTILINE)
        taken = code.split(":")[0]
        kept = re.sub(rf"^{taken}:.*\n(?:[ ]+.*\n)*", "", text, flags=re.MULTILINE)
        mine = tmp_path / "policy.yaml"
        mine.write_text(f"{kept}\n{code}\n")
        assert list(bayesify.plan(ResNet(), mine).converting())


def test_the_commented_examples_are_found() -> None:
    found = {
        name: len(re.findall(r"^# (?:rules|ignore|prior):", path.read_text(), re.MULTILINE))
        for name, path in presets().items()
    }
    assert found == {"flipout": 2, "last-layer": 0, "lora": 0, "lrt": 1, "moped": 0, "scratch": 1, "sparse": 1}
