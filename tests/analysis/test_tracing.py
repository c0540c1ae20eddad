"""Traces beside other threads: what torch.fx replaces is seen by the tracing thread alone, and put back."""

import contextlib
import copy
import sys
import threading
import warnings

import pytest
import torch
import torch.fx.experimental.symbolic_shapes  # sympy, which adds a filter of warnings
import torch.nn.functional as F
from torch import fx, nn
from torch.fx import _symbolic_trace

import bayesify
from bayesify.analysis.census import census
from bayesify.analysis.forward_trace import traced_alone
from bayesify.analysis.tracing import Replacements


@fx.wrap
def hidden(x):
    return x + 1


class Standardized(nn.Module):
    """Computes with its weight, asks for zeros of an unknown size, and checks it."""

    def __init__(self, size=4):
        super().__init__()
        self.layer, self.weight = nn.Linear(size, size), nn.Parameter(torch.randn(size, size))

    def forward(self, x):
        x = hidden(self.layer(x)) + torch.zeros(x.shape)
        torch._check(x.shape[0] > 0)
        return F.linear(x, self.weight - self.weight.mean(1, keepdim=True))


def models():
    return [
        nn.Sequential(Standardized(), nn.ReLU()),
        nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(2, 2)),
        nn.TransformerEncoderLayer(4, 2, 8),
        nn.GRU(3, 3),
    ]


def tables():
    """All that a trace replaces anything in."""
    spaces = [vars(nn.Module), vars(torch), vars(_symbolic_trace), vars(F), globals(), vars(torch.Tensor)]
    return [dict(space) for space in spaces], dict(_symbolic_trace._wrapped_fns_to_patch), list(warnings.filters)


def same(before, after):
    spaces = zip(before[0], after[0], strict=True)
    changed = [key for one, two in spaces for key in one.keys() | two.keys() if one.get(key) is not two.get(key)]
    return not changed and before[1:] == after[1:]


@pytest.fixture
def switching():
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def together(*works):
    """Run all at once, each in a thread of its own; the errors."""
    errors = []

    def run(work):
        try:
            work()
        except BaseException as error:
            errors.append(f"{type(error).__name__}: {error}")

    threads = [threading.Thread(target=run, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return errors


def test_threads_plan_and_convert_at_once_while_others_predict(switching):
    for model in models():  # what torch imports or caches at its first use is there
        bayesify.convert(model)
    before, given, shared = tables(), models(), models()
    plans = [bayesify.plan(model).to_dict() for model in given]
    x, plain = torch.randn(2, 4), Standardized()
    expected, done = plain(x), threading.Event()
    seen = []

    def planning(model, plan):
        for _ in range(15):
            assert bayesify.plan(model).to_dict() == plan

    def converting(model):
        for _ in range(5):
            assert any(True for _ in bayesify.variational_layers(bayesify.convert(copy.deepcopy(model))))

    def predicting():
        while not done.is_set():
            seen.append(torch.equal(plain(x), expected) and not _symbolic_trace.is_fx_tracing())

    def working():
        try:
            work = [lambda at=at: planning(given[at], plans[at]) for at in range(4)]
            work += [lambda: planning(given[0], plans[0])] + [lambda model=model: converting(model) for model in shared]
            problems.extend(together(*work))
        finally:
            done.set()

    problems = []
    problems += together(working, predicting, predicting)
    assert not problems
    assert seen
    assert all(seen)
    assert same(before, tables())


class Interrupting(Standardized):
    """Interrupts its own trace."""

    def forward(self, x):
        self.layer(x)
        raise KeyboardInterrupt


@pytest.mark.parametrize("traced", [census, traced_alone])
def test_an_interrupted_trace_puts_everything_back(traced):
    traced(Standardized())
    before = tables()
    with pytest.raises(KeyboardInterrupt):
        traced(Interrupting())
    assert same(before, tables())


@pytest.mark.parametrize("traced", [census, traced_alone])
def test_a_trace_can_be_interrupted_anywhere(traced):
    """At every line, of every function of ours, that a trace runs."""
    model = Standardized()
    traced(model)
    before, lines = tables(), []

    def count(frame, event, _):
        if "bayesify/analysis" not in frame.f_code.co_filename and frame.f_code.co_filename != __file__:
            return None
        lines.append(frame.f_lineno if event == "line" else 0)
        if len(lines) == stop:
            raise KeyboardInterrupt
        return count

    def run():
        lines.clear()
        sys.settrace(count)
        try:
            traced(model)
        finally:
            sys.settrace(None)

    stop = 0
    run()
    total = len(lines)
    assert total > 100
    for stop in range(1, total, max(1, total // 60)):
        with contextlib.suppress(KeyboardInterrupt):
            run()
        assert same(before, tables()), stop


def test_what_another_tracer_replaced_meanwhile_stays():
    """Two tracers that do not know of each other: ours ends first."""
    original = nn.Module.__call__
    ours = Replacements()
    ours.attribute(nn.Module, "__call__", lambda *args: original(*args))
    theirs = lambda *args: original(*args)  # noqa: E731
    nn.Module.__call__ = theirs
    try:
        ours.undo()
        assert nn.Module.__call__ is theirs
    finally:
        nn.Module.__call__ = original
