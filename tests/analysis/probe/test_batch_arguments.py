"""Which of a model's arguments hold the batch, and what layers do whose rows are not the batch's."""

from __future__ import annotations

import copy
import pickle
from collections import UserDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

import bayesify
from bayesify.nn.batch_arguments import examples_in, named


class _Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.head = nn.Linear(4, 4), nn.Linear(4, 3)


def _mask(*lengths: int) -> Tensor:
    return torch.arange(8) < torch.tensor(lengths)[:, None]


class Masked(_Net):
    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.head(self.a(x)[mask])


class Packed(_Net):
    sorted = False

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=self.sorted)
        return self.head(self.a(packed.data))


class Sorted(Packed):
    sorted = True


class Experts(_Net):
    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, 4)
        return self.head(rows[self.a(rows)[:, 0] > 0])


_X = torch.linspace(-2, 2, 64).sin().view(2, 8, 4)
VARYING: dict[str, tuple[type[nn.Module], tuple[Any, ...], list[tuple[Any, ...]]]] = {
    "masked": (Masked, (_X, _mask(3, 3)), [(_X, _mask(3, 4)), (_X, _mask(3, 5)), (_X, _mask(8, 8))]),
    "packed": (Packed, (_X, torch.tensor([8, 8])), [(_X, torch.tensor([8, 3])), (_X, torch.tensor([3, 5]))]),
    "packed, sorted": (Sorted, (_X, torch.tensor([8, 8])), [(_X, torch.tensor([8, 3]))]),
    "experts": (Experts, (_X,), [(torch.randn(2, 8, 4),) for _ in range(8)]),
}


@pytest.mark.parametrize("name", VARYING)
def test_rows_that_depend_on_the_data_are_an_example_each(name: str) -> None:
    kind, first, later = VARYING[name]
    torch.manual_seed(0)  # how many rows there are is by chance the same at times
    net = kind()
    plan = bayesify.plan(net, example_inputs=first)
    row = next(row for row in plan.rows if row.name == "head")
    assert row.settings is not None
    assert row.settings.rows <= 1
    assert any("its number of rows depends on the data" in note for note in row.notes), row.notes
    model: Any = bayesify.convert(net, example_inputs=first)
    bayesify.set_posterior_std(model.head, 1.0)
    for inputs in (first, *later):
        model(*inputs).sum().backward()
    if name == "masked":  # 3 and 5 positions: a multiple of the examples, by coincidence
        model.head.weight.data.zero_()
        out = model(torch.ones(2, 8, 4), _mask(3, 5)) - model.head.bias
        assert len(out.detach().unique(dim=0)) > 2


class Folds(nn.Module):
    """Folds pairs of rows into the batch; the batch is wherever `find` finds it."""

    def __init__(self, find: Callable[..., Tensor]) -> None:
        super().__init__()
        self.lin, self.find = nn.Linear(4, 4), find

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        x = self.find(*args, **kwargs)
        return self.lin(x.reshape(-1, 2, 4)).reshape(x.shape)


@dataclass
class Batch:
    x: Tensor
    name: str = "train"


_PLACES = torch.randn(5, 4)
CALLS: dict[str, tuple[Callable[..., Tensor], Callable[[Tensor], tuple[Any, ...]]]] = {
    "a dict": (lambda batch: batch["x"], lambda x: ({"y": 3, "x": x},)),
    "dicts in dicts": (lambda batch: batch["in"]["x"], lambda x: ({"in": {"x": x}},)),
    "a mapping of a library's": (lambda batch: batch["x"], lambda x: (UserDict({"x": x}),)),
    "an object": (lambda batch: batch.x, lambda x: (Batch(x),)),
    "a list": (lambda batch: batch[0], lambda x: ([x, x + 1],)),
    "a list of examples": (lambda batch: torch.stack(batch), lambda x: (list(x),)),
    "a list of dicts": (lambda batch: torch.stack([own["x"] for own in batch]), lambda x: ([{"x": own} for own in x],)),
    "after another": (lambda places, x: x + places.mean(), lambda x: (_PLACES, x)),
    "after classes that are as many": (lambda scale, x: x * scale.prod(), lambda x: (torch.ones(2), x)),
    "after a number": (lambda scale, x: x * scale, lambda x: (torch.tensor(0.5), x)),
}


def _within(model: nn.Module, call: Callable[[Tensor], tuple[Any, ...]], length: int) -> tuple[float, float]:
    """The correlation of one example's first and last position, and of two examples'."""
    with torch.no_grad():
        ys = torch.stack([model(*call(torch.ones(2, length, 4)))[:, [0, -1], 0] for _ in range(400)])
    together = torch.corrcoef(ys.flatten(1).T)
    return together[0, 1].item(), together[0, 2].abs().item()


@pytest.mark.parametrize("name", CALLS)
def test_the_argument_that_holds_the_batch_is_found(name: str) -> None:
    find, call = CALLS[name]
    model = bayesify.convert(Folds(find), example_inputs=call(torch.randn(2, 8, 4)))
    for length in (8, 12):
        of_one, of_two = _within(model, call, length)
        assert of_one > 0.95
        assert of_two < 0.25
    assert bayesify.plan(Folds(find), example_inputs=call(torch.randn(2, 8, 4))).batch_arguments
    model(*call(torch.randn(3, 8, 4)))


class _Branches(nn.Module):
    """A DeepONet: points that all functions are evaluated at come before the functions."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.branch = nn.Linear(1, 8), nn.Linear(4, 8)

    def forward(self, points: Tensor, functions: Tensor) -> Tensor:
        return self.branch(functions) @ self.trunk(points).T


def test_the_output_tells_which_of_two_arguments_is_the_batch() -> None:
    given = torch.linspace(0, 1, 10)[:, None], torch.randn(2, 4)
    rows = {row.name: row.settings for row in bayesify.plan(_Branches(), example_inputs=given).converting()}
    assert rows["branch"] is not None
    assert rows["trunk"] is not None
    assert (rows["branch"].batch_dim, rows["trunk"].batch_dim) == (0, -1)
    model = bayesify.convert(_Branches(), example_inputs=given)
    assert model(torch.rand(7, 1), torch.randn(3, 4)).shape == (3, 7)


class _Keyword(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(4, 4)

    def forward(self, places: Tensor, x: Tensor) -> Tensor:
        return self.lin((x + places).reshape(-1, 2, 4)).reshape(x.shape)


def test_by_position_or_by_name_it_is_the_same_argument() -> None:
    places = torch.randn(8, 4)
    for given in ((places, torch.randn(2, 8, 4)), {"places": places, "x": torch.randn(2, 8, 4)}):
        model = bayesify.convert(_Keyword(), example_inputs=given)
        for twin in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert _within(twin, lambda x: (torch.zeros(x.shape[1], 4), x), 12)[0] > 0.95
        with torch.no_grad():
            ys = torch.stack([model(x=torch.ones(2, 8, 4), places=places * 0)[0, :, 0] for _ in range(200)])
        assert torch.corrcoef(ys.T)[0, -1] > 0.95


def test_a_call_without_that_argument_warns_and_counts_rows() -> None:
    def find(*args: Tensor, other: Tensor | None = None) -> Tensor:
        return args[0] if other is None else other

    model = bayesify.convert(Folds(find), example_inputs=torch.randn(2, 8, 4))
    with pytest.warns(UserWarning, match="no argument like those of example_inputs"), torch.no_grad():
        ys = torch.stack([model(other=torch.ones(2, 8, 4))[0, :, 0] for _ in range(400)])
    assert torch.corrcoef(ys.T)[0, -1].abs() < 0.25
    assert torch.corrcoef(ys.T)[0, 1] > 0.95  # of one row, which pairs of positions are


def test_compiled_code_finds_it_too() -> None:
    find, call = CALLS["a dict"]
    model = bayesify.convert(Folds(find), example_inputs=call(torch.randn(2, 8, 4)))
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    for size, length in ((2, 8), (3, 12), (5, 6)):
        assert compiled(*call(torch.randn(size, length, 4))).shape == (size, length, 4)
    assert _within(compiled, call, 12)[0] > 0.95


def test_two_calls_tell_by_their_lists_too() -> None:
    find, call = CALLS["a list of examples"]
    plan = bayesify.plan(Folds(find), example_inputs=[call(torch.randn(size, 8, 4)) for size in (2, 3)])
    assert plan.batch_arguments == (((0, 0), 0),)


class _Detector(nn.Module):
    """Images of different sizes in a list, padded to one batch; then regions, as many as the data have."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.box = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4, 4)

    def forward(self, images: list[Tensor]) -> list[Tensor]:
        height, width = (max(image.shape[at] for image in images) for at in (1, 2))
        padded = [nn.functional.pad(i, (0, width - i.shape[2], 0, height - i.shape[1])) for i in images]
        features = self.body(torch.stack(padded)).movedim(1, -1)
        found = features[..., 0] > 0
        counts = found.flatten(1).sum(1).tolist()
        return list(self.box(features[found]).split(counts))


def test_images_in_a_list_are_the_batch() -> None:
    images = [torch.randn(3, 8, 8), torch.randn(3, 6, 10)]
    plan = bayesify.plan(_Detector(), example_inputs=(images,))
    rows = {row.name: row for row in plan.converting()}
    assert plan.batch_arguments == (((0, 0), 0),)
    assert rows["body"].notes == ("called once, (2, 3, 8, 10)",)
    assert "depends on the data" in rows["box"].notes[1]
    model = bayesify.convert(_Detector(), example_inputs=(images,))
    assert len(model([torch.randn(3, 9, 9) for _ in range(3)])) == 3


def test_graphs_in_one_batch_are_said_not_to_be_followed() -> None:
    data, geometric = pytest.importorskip("torch_geometric.data"), pytest.importorskip("torch_geometric.nn")

    class Graphs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = geometric.GraphConv(3, 4), nn.Linear(4, 2)

        def forward(self, batch: Any) -> Tensor:
            h = self.conv(batch.x, batch.edge_index)
            return self.head(geometric.global_mean_pool(h, batch.batch))

    def graph(nodes: int) -> Any:
        edges = torch.stack([torch.arange(nodes), torch.zeros(nodes)]).long()
        return data.Data(x=torch.randn(nodes, 3), edge_index=edges)

    def batch(*nodes: int) -> Any:
        return data.Batch.from_data_list([graph(own) for own in nodes])

    plan = bayesify.plan(Graphs(), example_inputs=(batch(3, 4),))
    unfollowed = [row.name for row in plan.converting() if any(note.startswith("approximate") for note in row.notes)]
    assert unfollowed
    model = bayesify.convert(Graphs(), example_inputs=(batch(3, 4),))
    for nodes in ((3, 4), (5, 5), (2, 3, 4), (6,)):
        assert model(batch(*nodes)).shape == (len(nodes), 2)


def test_paths_are_followed_as_far_as_they_go() -> None:
    def forward(x: Tensor, *, y: Any = None) -> None: ...

    ways = named([((0, 0), 1), ((1, "y", "z"), 0)], forward)
    assert ways == (((0, 0), 1), ((1, "x"), 1), ((1, "y", "z"), 0))
    assert examples_in((torch.zeros(2, 5),), {}, ways) == 5
    assert examples_in((), {"x": torch.zeros(2, 6)}, ways) == 6
    assert examples_in((torch.zeros(2),), {"y": {"z": [1, 2, 3]}}, ways) == 3
    assert examples_in((None,), {"y": 3}, ways) == 0


class IdsAmongNumbers(_Net):
    """As click-through models take them: the first column of a table of floats is an id."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(9, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.a(self.table(x[:, 0].long()) + x[:, 1:]))


def test_ids_among_floats_are_exchanged_where_other_numbers_fail() -> None:
    x = torch.cat([torch.tensor([[8.0], [1.0], [8.0], [0.0]]), torch.randn(4, 4)], 1)
    (row,) = (row for row in bayesify.plan(IdsAmongNumbers(), example_inputs=x).rows if row.name == "head")
    assert row.notes == ("called once, (4, 4)",)
