"""Examples that are followed to where a layer has folded them: every example has the one draw that is its own."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

import bayesify
from bayesify.nn.hooks import forget_examples, tell_examples
from bayesify.nn.switches import examples_of_forward, last_examples
from tests.analysis.probe.told_models import settings_of
from tests.support import draws, judge_moments

SMALL = {"posterior": {"init_std": 1e-4}}  # so small that the model is linear in its noise


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
    assert settings_of(model, given) == {"layer": expected}
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


def test_attention_over_folded_windows_shares_the_examples_draw() -> None:
    class Windows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attn = nn.MultiheadAttention(4, 2, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            windows = x.unflatten(1, (2, -1)).flatten(0, 1)
            return self.attn(windows, windows, windows, need_weights=False)[0].unflatten(0, (-1, 2)).sum((1, 2))

    x = torch.randn(2, 4, 4)
    assert set(settings_of(Windows(), x).values()) == {(0, 2, 0)}
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
    assert settings_of(Rows(), x) == {"rnn": (0, 2, 0)}
    _examples_are_independent(Rows(), x, 0, {}, x.double())
