"""Example inputs: signs follow the model's examples wherever they are, and the plan says what runs told of layers."""

from __future__ import annotations

import copy
import io
import random
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

import bayesify
from bayesify.errors import UsageError
from bayesify.nn.hooks import forget_examples, tell_examples
from bayesify.nn.switches import examples_of_forward, last_examples
from tests.nets import SmallResNet, Tangled
from tests.support import draws, judge_moments

SMALL = {"posterior": {"init_std": 1e-4}}  # so small that the model is linear in its noise


def _settings(model: nn.Module, inputs: Any, policy: Any = "flipout") -> dict[str, tuple[int, int, int]]:
    rows = bayesify.plan(model, policy, example_inputs=inputs).converting()
    return {row.name: (row.settings.batch_dim, row.settings.rows, row.settings.run) for row in rows if row.settings}


def _notes(model: nn.Module, inputs: Any, policy: Any = "flipout") -> dict[str, tuple[str, ...]]:
    return {row.name: row.notes for row in bayesify.plan(model, policy, example_inputs=inputs).rows}


def _examples_are_independent(model: nn.Module, x: Tensor, dim: int, policy: dict[str, Any], inputs: Any) -> None:
    """Each example's output has the covariance of one draw of all weights, and two examples' are uncorrelated."""
    model = model.double().eval()
    x = x.double()
    made: Any = bayesify.convert(model, {"method": "flipout", **SMALL, **policy}, example_inputs=inputs)
    output = model(x)
    examples = torch.arange(output.shape[dim]).view([-1 if at == dim else 1 for at in range(output.dim())])
    of = examples.expand(output.shape).flatten()
    expected = torch.zeros(output.numel(), output.numel(), dtype=torch.float64)
    for name, layer in bayesify.variational_layers(made):
        for mean in layer.means():
            expected += _covariance(model, f"{name}.{mean}", layer.std_of(mean).detach(), x)
    judge_moments(draws(made, 1500, x) / 1e-4, output.detach() / 1e-4, expected / 1e-8 * (of[:, None] == of[None, :]))


def _covariance(model: nn.Module, name: str, std: Tensor, x: Tensor) -> Tensor:
    def output(given: Tensor) -> Tensor:
        return functional_call(model, {name: given}, (x,)).flatten()

    value = model.get_parameter(name).detach()
    scaled = torch.autograd.functional.jacobian(output, value).flatten(1) * std.flatten()  # type: ignore[no-untyped-call]
    return scaled @ scaled.T


def _encoder() -> nn.Module:
    return nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 2, 4, dropout=0.0), 1, enable_nested_tensor=False)


class _Wrapped(nn.Module):
    """A sequence-first network whose parents do not tell: x (time, batch, features)."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.encoder, self.head = nn.Linear(3, 4), _encoder(), nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(torch.tanh(self.embed(x))))


def _time_first(batch: int) -> Tensor:
    return torch.randn(3, batch, 3, dtype=torch.float64)


@pytest.mark.parametrize("told", [True, False])
def test_a_sequence_first_encoder_has_one_draw_per_example(told: bool) -> None:
    inputs = [_time_first(2), _time_first(3)] if told else None
    check = lambda: _examples_are_independent(_Wrapped(), _time_first(2), 1, {}, inputs)  # noqa: E731
    if told:
        check()
    else:
        with pytest.raises(AssertionError, match="covariance"):
            check()


def _torchvision_swin() -> nn.Module:
    swin = pytest.importorskip("torchvision").models.SwinTransformer
    return swin([2, 2], 4, [1, 1], [1, 1], [2, 2], mlp_ratio=1.0, num_classes=2)


def _timm_swin() -> nn.Module:
    swin = pytest.importorskip("timm.models.swin_transformer").SwinTransformer
    return swin(img_size=8, patch_size=2, window_size=2, embed_dim=4, depths=(1, 1), num_heads=(1, 1), mlp_ratio=1.0,
                num_classes=2)  # fmt: skip


@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize("swin", [_torchvision_swin, _timm_swin])
def test_windows_share_their_examples_draw(vision: Any, swin: Any, told: bool) -> None:
    torch.manual_seed(0)
    targets = ["Linear"] if swin is _torchvision_swin else [r"re:layers\.0\..*\.attn\..*"]
    policy = {"rules": [{"targets": targets}]}
    # much alike in all windows, since independent draws for different ones would show less
    x = torch.randn(2, 3, 2, 2, dtype=torch.float64).tile(1, 1, 4, 4) + 0.2 * torch.randn(2, 3, 8, 8)
    check = lambda: _examples_are_independent(swin(), x, 0, policy, x if told else None)  # noqa: E731
    if told or swin is _torchvision_swin:
        check()
    else:
        with pytest.raises(AssertionError, match="covariance"):
            check()


class _Folds(nn.Module):
    """Folds something into the batch before its layer, in one of many orders; x (batch, 2, 3, 4, 5)."""

    def __init__(self, order: tuple[int, ...], kept: int, layer: nn.Module) -> None:
        super().__init__()
        self.order, self.kept, self.layer = order, kept, layer

    def forward(self, x: Tensor) -> Tensor:
        folded = x.permute(*self.order).flatten(0, self.kept)
        back = self.layer(folded).mean(dim=tuple(range(1, folded.dim())))
        sizes = [x.shape[at] for at in self.order[: self.kept + 1]]
        return back.view(*sizes, 1).movedim(self.order[: self.kept + 1].index(0), 0).flatten(1).sum(1, keepdim=True)


ORDERS = {
    "example after example": ((0, 1, 2, 3, 4), 1, (0, 2, 0)),
    "in turns": ((1, 0, 2, 3, 4), 1, (0, 2, 1)),
    "in the middle": ((1, 0, 2, 3, 4), 2, (0, 6, 3)),
    "in turns, of all": ((2, 1, 0, 3, 4), 2, (0, 6, 1)),
    "not at all": ((0, 1, 2, 3, 4), 0, (0, 1, 0)),
}


@pytest.mark.parametrize("size", [1, 2, 5])
@pytest.mark.parametrize("kind", ["linear", "conv"])
@pytest.mark.parametrize("case", ORDERS)
def test_every_way_to_fold_is_found_and_followed(case: str, kind: str, size: int) -> None:
    order, kept, expected = ORDERS[case]
    channels = torch.empty(9, 2, 3, 4, 5).permute(*order).flatten(0, kept).shape[1]
    if kind == "conv" and kept == 0:
        pytest.skip("a convolution over five dimensions")
    conv = nn.Conv2d if kept == 1 else nn.Conv1d
    layer = nn.Linear(5, 2) if kind == "linear" else conv(channels, 2, 1)
    model = _Folds(order, kept, layer).double()
    given = torch.randn(size, 2, 3, 4, 5, dtype=torch.float64)
    assert _settings(model, given) == {"layer": expected}
    _examples_are_independent(model, torch.randn(3, 2, 3, 4, 5), 0, {}, given)
    # another number of rows per example than the plan saw
    if kind == "linear" and kept == 1:
        _examples_are_independent(model, torch.randn(2, 4, 3, 4, 5), 0, {}, given)


def test_other_batches_and_parts_called_alone() -> None:
    model = _Folds((1, 0, 2, 3, 4), 1, nn.Linear(5, 2))
    made: Any = bayesify.convert(model, example_inputs=torch.randn(2, 2, 3, 4, 5))
    made(torch.randn(3, 4, 3, 4, 5))
    assert last_examples(made.layer) == (12, 3)
    for rows in (7, 8):  # nothing tells how many examples these are: each row counts as one
        alone = made.layer(torch.ones(rows, 3, 4, 5))
        assert alone.shape == (rows, 3, 4, 2)
        assert len(alone[:, 0, 0].unique(dim=0)) > 4


def test_the_model_at_the_door_is_told_and_forgets() -> None:
    model = _Folds((1, 0, 2, 3, 4), 1, nn.Linear(5, 2))
    made: Any = bayesify.convert(model, example_inputs=torch.randn(2, 2, 3, 4, 5))
    file = io.BytesIO()
    torch.save({"hooks": [tell_examples, forget_examples]}, file)
    file.seek(0)
    assert torch.load(file, weights_only=True)["hooks"] == [tell_examples, forget_examples]
    for twin in (made, copy.deepcopy(made), torch.compile(copy.deepcopy(made), backend="aot_eager", fullgraph=True)):
        assert twin(torch.randn(5, 2, 3, 4, 5)).shape == (5, 1)
        assert examples_of_forward() == 0
    with pytest.raises(RuntimeError):
        made(torch.randn(5, 2, 3, 4, 6))
    assert examples_of_forward() == 0
    back = bayesify.revert(made)
    assert (len(back._forward_hooks), len(back._forward_pre_hooks)) == (0, 0)
    assert vars(back).keys() == vars(model).keys()
    assert vars(back.layer).keys() == vars(model.layer).keys()


class _Odd(nn.Module):
    """What no signs can follow, and what all examples share; x (batch, 4)."""

    def __init__(self) -> None:
        super().__init__()
        self.mixed, self.shared, self.twice, self.unused = (nn.Linear(4, 4) for _ in range(4))
        self.rows, self.dead, self.still = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.register_buffer("places", torch.randn(3, 4))

    def forward(self, x: Tensor) -> Tensor:
        mixed = self.mixed(x + x.mean(0))
        shared = self.shared(self.places).sum(0)
        y = self.twice(self.twice(x).unsqueeze(1)).squeeze(1)
        picked = self.rows(x[x[:, 0] > x[:, 0].median()])
        return mixed + shared + y + picked.sum() + self.dead(x).detach() + 0 * self.still(x)


def test_the_plan_says_what_cannot_be_followed() -> None:
    notes = _notes(_Odd(), torch.randn(5, 4))
    called, approximate = notes["mixed"]
    assert called == "called once, (5, 4)"
    assert "signs along dimension 0 follow no example: its rows hold no single example each (inputs of" in approximate
    assert "(inputs of" not in _notes(_Odd(), [torch.randn(5, 4), torch.randn(3, 4)])["mixed"][1]
    assert "one draw serves the whole batch" in notes["shared"][1]
    assert notes["twice"] == ("called 2 times, (5, 4), (5, 1, 4)",)
    assert "depends on the data" in notes["rows"][1] or "no single example" in notes["rows"][1]
    assert notes["unused"] == ("never called with these inputs",)
    still = [name for name, found in notes.items() if "noise in it does not move the output" in found]
    assert still == ["dead", "still"]


def test_a_shared_input_has_one_draw_for_all() -> None:
    torch.manual_seed(0)
    model: Any = bayesify.convert(_Odd(), example_inputs=torch.randn(5, 4))
    layer = model.shared
    layer.set_std("weight", 1.0)
    with torch.no_grad():
        layer.weight.zero_()
        layer.bias.zero_()
        y = torch.stack([layer(torch.ones(3, 4)) for _ in range(3)])
    assert torch.equal(y[:, 0], y[:, 1])
    assert not torch.equal(y[0], y[1])


def test_lrt_is_told_of_calls_alone() -> None:
    notes = _notes(_Folds((0, 1, 2, 3, 4), 1, nn.Linear(5, 2)), torch.randn(2, 2, 3, 4, 5), "lrt")
    assert notes["layer"] == ("called once, (4, 3, 4, 5)",)


def test_attention_over_folded_windows_shares_the_examples_draw() -> None:
    class Windows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attn = nn.MultiheadAttention(4, 2, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            windows = x.unflatten(1, (2, -1)).flatten(0, 1)
            return self.attn(windows, windows, windows, need_weights=False)[0].unflatten(0, (-1, 2)).sum((1, 2))

    x = torch.randn(2, 4, 4)
    assert set(_settings(Windows(), x).values()) == {(0, 2, 0)}
    _examples_are_independent(Windows(), x, 0, {}, x.double())


def test_a_recurrent_layer_over_folded_sequences_shares_the_examples_draw() -> None:
    class Rows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.RNN(1, 2)
            self.rnn.weight_ih_l0.data *= 0.1

        def forward(self, x: Tensor) -> Tensor:
            return self.rnn(x.flatten(0, 1).transpose(0, 1))[0].sum(0).unflatten(0, (-1, 2)).sum(1)

    x = torch.randn(2, 1, 1, 1).expand(2, 2, 4, 1)  # the noise of the hidden states' product is the most of it
    assert _settings(Rows(), x) == {"rnn": (0, 2, 0)}
    _examples_are_independent(Rows(), x, 0, {}, x.double())


class _Traces(nn.Module):
    """Leaves traces wherever it can."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.bn, self.drop = nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Dropout(0.5)
        self.steps, self.register = 0, 0
        self.register_buffer("count", torch.zeros(()))
        self.drop.eval()

    def forward(self, x: Tensor) -> Tensor:
        self.steps += 1
        self.last = x
        self.count += 1
        self.bn.running_mean = self.bn.running_mean + 1
        random.random()
        return self.drop(self.bn(self.fc(x + torch.randn_like(x))))


def test_the_run_leaves_no_trace() -> None:
    model = _Traces()
    model.fc.requires_grad_(False)
    state = copy.deepcopy(model.state_dict())
    keys, flags = vars(model).keys() | set(), [each.training for each in model.modules()]
    buffers, rng, python = dict(model.named_buffers()), torch.get_rng_state(), random.getstate()
    seeds = torch.cuda._lazy_seed_tracker.get_calls()  # for a device that is not used yet
    bayesify.plan(model, {"frozen": "convert"}, example_inputs=torch.zeros(4, 3))
    assert torch.cuda._lazy_seed_tracker.get_calls() == seeds
    assert all(torch.equal(state[name], each) for name, each in model.state_dict().items())
    assert (vars(model).keys(), model.steps, [each.training for each in model.modules()]) == (keys, 0, flags)
    assert all(each is buffers[name] for name, each in model.named_buffers())
    assert torch.equal(torch.get_rng_state(), rng)
    assert random.getstate() == python
    assert not model.fc.weight.requires_grad
    assert model.fc.weight.grad is None
    assert not model.fc._forward_pre_hooks
    assert torch.backends.mha.get_fastpath_enabled()


@pytest.mark.parametrize("given", [torch.tensor([[1, 2, 3]]), {"tokens": torch.zeros(4, 3, dtype=torch.long)}])
def test_ids_are_followed_too(given: Any) -> None:
    settings = _settings(Tangled(), given, {"rules": [{"targets": ["a", "attn", "twin"]}]})
    assert set(settings.values()) == {(0, 1, 0)}


def test_lazy_models_stay_lazy() -> None:
    model = nn.Sequential(nn.LazyLinear(3))
    assert _notes(model, torch.randn(2, 5))["0"][0] == "called once, (2, 5)"
    assert model[0].has_uninitialized_params()


def test_a_product_is_seen_whatever_else_of_its_layer_the_function_takes() -> None:
    class BiasFirst(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bias, self.weight = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.randn(4, 3))

        def forward(self, x: Tensor) -> Tensor:
            return torch.addmm(self.bias, x, self.weight)

    assert _notes(BiasFirst(), torch.randn(2, 4))[""] == ("called once, (2, 4)",)


def test_a_usual_network_has_nothing_to_tell() -> None:
    notes = _notes(SmallResNet(), torch.randn(4, 3, 8, 8))
    assert all(len(found) == 1 and found[0].startswith("called once") for found in notes.values() if found)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (torch.randn(2, 4), "SmallResNet fails with these example_inputs: RuntimeError"),
        ([torch.randn(2, 3, 8, 8)] * 2, "they differ in none"),
        ([torch.randn(2, 3, 8, 8), torch.randn(3, 3, 9, 8)], "differ in more"),
        ([torch.randn(2, 3, 8, 8)] * 3, "a list of 3"),
        (3, "not int"),
        ({"x": 3}, "holds no tensor"),
        (torch.randn(0, 3, 8, 8), "no batch"),
    ],
)
def test_inputs_that_cannot_be_used(given: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        bayesify.plan(SmallResNet(), example_inputs=given)


def test_weights_are_needed() -> None:
    with pytest.raises(UsageError, match="on the meta device"):
        bayesify.plan(SmallResNet().to("meta"), example_inputs=torch.randn(2, 3, 8, 8))


def test_a_computed_weight_is_seen_through() -> None:
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(3, 4)), nn.ReLU(), nn.Linear(4, 2))
    notes = _notes(model.eval(), torch.randn(5, 3))
    assert "called once, (5, 3)" in notes["0"]
    assert "noise in it does not move the output" not in notes["0"]


class _Half(nn.Module):
    """Two matrices, one of which is switched off."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.off = nn.Parameter(torch.randn(4, 4)), nn.Parameter(torch.randn(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.used + 0 * (x @ self.off)


def test_a_matrix_whose_noise_does_not_matter_is_named() -> None:
    notes = _notes(nn.Sequential(_Half()), torch.randn(5, 4))
    assert notes["0"] == ("called 2 times, (5, 4)", "noise in off does not move the output")
