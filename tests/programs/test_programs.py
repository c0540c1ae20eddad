"""Exported programs, converted: from the file alone, with the law of the model that they were."""

import copy
import json
import os
import pathlib
import pickle
import subprocess
import sys

import pytest
import torch
from torch.export import Dim, export

import bayesify
from bayesify.errors import FileRefusedError, UsageError
from bayesify.files.load_model import load_model as load
from bayesify.files.save import save
from bayesify.files.untrusted.exported_archive import open_program
from bayesify.programs.part import Part
from bayesify.programs.program import Program, rebuilt, state_of

from .exported import Encoder, cases, flat

NAMES = tuple(cases())

ALONE = """
import json, sys
sys.modules["tests"] = None
import torch, bayesify

def flat_of(output):
    return list(output.values()) if isinstance(output, dict) else [*output] if isinstance(output, tuple) else [output]

results = {}
for name, (path, inputs, out) in json.load(open(sys.argv[1])).items():
    model = bayesify.convert(bayesify.load(path), sys.argv[2])
    torch.save(model.state_dict(), out + ".state")
    given = torch.load(inputs)
    with bayesify.posterior_mean(model):
        quiet = [model(*each) for each in given]
    noisy = model(*given[-1])
    sum(each.square().sum() for each in flat_of(noisy)).backward()
    grads = {key: float(each.grad.abs().sum()) for key, each in model.named_parameters() if key.endswith("_rho")}
    torch.save((quiet, noisy), out)
    bayesify.save(model, out + ".pt")
    again = bayesify.load(out + ".pt")
    with bayesify.posterior_mean(again):
        same = torch.equal(flat_of(again(*given[0]))[0], flat_of(quiet[0])[0])
    results[name] = {"grads": grads, "kl": model.kl().item(), "kl again": again.kl().item(), "same": same,
                     "terms": sum(model.kl.by_layer().values()).item()}
print(json.dumps(results))
"""


@pytest.fixture(scope="module", params=["flipout", "lrt"])
def alone(request, folder):
    """All cases converted by a process that cannot import the models' package; (its results, its outputs) by name."""
    torch.manual_seed(1)
    out = folder / request.param
    out.mkdir()
    work = {}
    for name, case in cases().items():
        inputs = [case.inputs(size) for size in (1, 3, 6)]
        torch.save(inputs, out / f"{name}.inputs")
        work[name] = (str(folder / f"{name}.pt2"), str(out / f"{name}.inputs"), str(out / name))
    (out / "work.json").write_text(json.dumps(work))
    root = pathlib.Path(bayesify.__file__).parents[1]
    run = subprocess.run(
        [sys.executable, "-c", ALONE, str(out / "work.json"), request.param],
        capture_output=True, text=True, check=False, cwd=out,
        env={**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},  # as here, or rounding differs
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout), out


@pytest.mark.parametrize("name", NAMES)
def test_a_program_converts_from_its_file_alone(name, alone, folder):
    results, out = alone
    case, found = cases()[name], results[name]
    assert set(found["grads"]) >= {f"{site}_rho".removeprefix("root_products.") for site in case.sites if site != "mix"}
    assert all(value > 0 for value in found["grads"].values())
    assert 0 < found["kl"] < float("inf")
    assert found["kl"] == pytest.approx(found["terms"], rel=1e-5)
    assert found["kl again"] == pytest.approx(found["kl"], rel=1e-6)
    assert found["same"]
    state = torch.load(out / f"{name}.state")
    assert {key for key in state if key.endswith("_rho")} >= {f"{site}_rho" for site in case.sites}
    assert {key for key in state if not key.endswith(("_rho", "_prior_mean"))} == set(case.model.state_dict())
    quiet, noisy = torch.load(out / name)
    for given, answers in zip(torch.load(out / f"{name}.inputs"), quiet, strict=True):
        expected = torch.export.load(folder / f"{name}.pt2").module()(*given)
        assert all(torch.equal(*pair) for pair in zip(flat(expected), flat(answers), strict=True))
    assert not torch.equal(flat(noisy)[0], flat(quiet[-1])[0])


def test_one_posterior_for_a_weight_with_two_uses(folder):
    model = bayesify.convert(open_program(folder / "tied mlp.pt2"))
    assert len(list(bayesify.variational_layers(model))) == 2
    parts = [layer for _, layer in bayesify.variational_layers(model)]
    assert model.kl().item() == pytest.approx(sum(part.kl_divergence().item() for part in parts))
    gpt = bayesify.convert(open_program(folder / "gpt.pt2"))
    assert gpt.head.weight is gpt.wte.weight
    # torch's own reader gives two Parameters of one storage
    gpt = bayesify.convert(torch.export.load(folder / "gpt.pt2"))
    assert gpt.head.weight is gpt.wte.weight


def test_the_plan_has_the_original_names_and_classes(folder):
    rows = {row.name: row for row in bayesify.plan(open_program(folder / "cnn.pt2")).rows}
    assert (rows["layer1.0"].type, rows["layer1.0"].becomes) == ("Conv2d", "FlipoutConv2d")
    assert (rows["stem.1"].verb, rows["stem.1"].type) == ("keeps", "BatchNorm2d")
    rows = {row.name: row for row in bayesify.plan(open_program(folder / "gpt.pt2")).rows}
    assert (rows["mlp.up"].verb, rows["mlp.up"].type) == ("converts", "Projection")
    assert (rows["wpe"].verb, rows["wpe"].type) == ("keeps", "Embedding")
    rows = {row.name: row for row in bayesify.plan(open_program(folder / "tied mlp.pt2")).rows}
    assert "gate: the program uses it in mul" in rows[""].reason
    assert "never uses it" in rows["unused"].reason


@pytest.mark.parametrize(
    ("selector", "case", "picked"),
    [
        ("type:Conv2d", "cnn", {"stem.0", "layer1.0", "layer1.1"}),
        ("layer1.*", "cnn", {"layer1.0", "layer1.1"}),
        ("type:Projection", "gpt", {"attn", "mlp.up", "mlp.down"}),
        ("type:tests.programs.exported.Projection", "gpt", {"attn", "mlp.up", "mlp.down"}),
        ("type:torch.nn.MultiheadAttention", "encoder", {"encoder.layers.0.self_attn", "encoder.layers.1.self_attn"}),
    ],
)
def test_policies_select_the_original_modules(selector, case, picked, folder):
    plan = bayesify.plan(open_program(folder / f"{case}.pt2"), {"rules": [{"targets": [selector], "method": "lrt"}]})
    assert {row.name for row in plan.converting()} == picked


@pytest.mark.parametrize("name", NAMES)
def test_conversion_is_undone(name, folder):
    case = cases()[name]
    program, given = open_program(folder / f"{name}.pt2"), case.inputs(2)
    reference = open_program(folder / f"{name}.pt2")
    reverted = bayesify.revert(bayesify.convert(program))
    assert all(torch.equal(*pair) for pair in zip(flat(reverted(*given)), flat(reference(*given)), strict=True))
    assert set(reverted.state_dict()) == set(program.state_dict())
    assert not hasattr(reverted, "kl")


def test_a_converted_program_is_copied_pickled_and_trained(folder, tmp_path):
    case = cases()["tied mlp"]
    model = bayesify.convert(open_program(folder / "tied mlp.pt2"))
    x = case.inputs(4)
    optimizer = torch.optim.SGD(bayesify.param_groups(model, lr=0.01))
    for _ in range(3):
        optimizer.zero_grad()
        (model.train()(*x).square().mean() + model.kl() / 1000).backward()
        optimizer.step()
    save(model, tmp_path / "m.pt")
    others = [copy.deepcopy(model), pickle.loads(pickle.dumps(model)), load(tmp_path / "m.pt")]
    torch.manual_seed(5)
    expected = model(*x)
    for other in others:
        assert isinstance(other, Program)
        assert other.kl.root is other
        assert other.training
        torch.manual_seed(5)
        assert torch.equal(other(*x), expected)
        assert torch.equal(other.kl(), model.kl())
        other.load_state_dict(model.state_dict())
    assert torch.equal(next(model.parameters()), next(others[0].parameters()))
    with torch.no_grad():
        next(model.parameters()).add_(1)
    assert not torch.equal(next(model.parameters()), next(others[0].parameters()))
    assert load(tmp_path / "m.pt", meta=True).mix.is_meta


def test_a_saved_program_with_planted_text_is_refused(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = bayesify.convert(open_program(folder / "tied mlp.pt2"))
    model._text = model._text.replace('"name": "x"', "\"name\": \"x=open('ran','w')\"")
    with pytest.raises(UsageError, match=r"would not open again.*where a name should stand"):
        save(model, tmp_path / "m.pt")
    torch.save(model, tmp_path / "m.pt")
    with pytest.raises(FileRefusedError, match="where a name should stand"):
        load(tmp_path / "m.pt")
    assert not (tmp_path / "ran").exists()


def test_an_exported_program_converts_in_memory():
    program = export(Encoder().eval(), (torch.randn(2, 5, 8),), dynamic_shapes=({0: Dim("batch", min=1)},))
    model, x = bayesify.convert(program), torch.randn(3, 5, 8)
    with bayesify.posterior_mean(model):
        assert torch.equal(model(x), program.module()(x))
    before = {name: tensor.clone() for name, tensor in program.state_dict.items()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert all(torch.equal(tensor, before[name]) for name, tensor in program.state_dict.items())
    assert torch.equal(rebuilt(model._text, state_of(model)).kl(), model.kl())
    with pytest.raises(UsageError, match="in place"):
        bayesify.convert(program, inplace=True)


def test_a_foreign_bias_stays_outside_of_the_part(folder):
    model = open_program(folder / "tied mlp.pt2")
    assert isinstance(model.encode, Part)
    assert [use[-1].function for use in model.encode.uses] == ["linear", "linear"]
    assert "bias" in model._parameters
