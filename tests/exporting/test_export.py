"""Exported files in their own runtimes: the same numbers, the same law of the noise, or nothing written."""

from __future__ import annotations

import json
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bayesify
from bayesify.errors import ExportMismatchError, UsageError
from bayesify.estimators import noise
from bayesify.exporting import onnx_file

Run = Callable[..., dict[str, Tensor]]
ENDINGS = (".onnx", ".pt2")


def opened(path: Path) -> Run:
    """What a file computes, by its own runtime: from inputs by name to outputs by name."""
    if path.suffix == ".pt2":
        program: Any = torch.export.load(path).module()

        def in_torch(*args: Tensor, **kwargs: Tensor) -> dict[str, Tensor]:
            given = program(*args, **kwargs)
            return {"output": given} if isinstance(given, Tensor) else given

        return in_torch
    runtime = pytest.importorskip("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = 1
    session = runtime.InferenceSession(path, options)
    names = [own.name for own in session.get_outputs()]

    def in_onnxruntime(*args: Tensor, **kwargs: Tensor) -> dict[str, Tensor]:
        positional = dict(zip([own.name for own in session.get_inputs()], args, strict=False))
        given = {name: tensor.numpy() for name, tensor in (positional | kwargs).items()}
        return dict(zip(names, map(torch.from_numpy, session.run(None, given)), strict=True))

    return in_onnxruntime


@pytest.fixture(params=ENDINGS)
def path(request: Any, tmp_path: Path) -> Path:
    if request.param == ".onnx":
        pytest.importorskip("onnxscript")
        pytest.importorskip("onnxruntime")
    return tmp_path / f"net{request.param}"


class Branches(nn.Module):
    """An output for each kind of layer, so that none hides behind another."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.conv, self.table = nn.Linear(4, 2), nn.Conv1d(3, 2, 2), nn.Embedding(5, 2)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.recurrent = nn.GRU(4, 2, batch_first=True)
        self.own = nn.Parameter(torch.randn(2, 4) * 0.3)

    def forward(self, x: Tensor, *, ids: Tensor) -> dict[str, Tensor]:
        return {
            "linear": self.linear(x[:, 0]),
            "conv": self.conv(x).mean(-1),
            "table": self.table(ids).mean(1),
            "attention": self.attention(x, x, x, need_weights=False)[0].mean(1),
            "recurrent": self.recurrent(x)[0].mean(1),
            "own": x.mean(1) @ self.own.t(),
        }


def branches(method: Any) -> tuple[nn.Module, dict[str, Tensor]]:
    torch.manual_seed(0)
    rules = [{"targets": ["type:Embedding"]}, {"targets": ["re:.*"]}]
    model = bayesify.convert(Branches().eval(), {"method": method, "posterior": {"init_std": 0.1}, "rules": rules})
    return model, {"x": torch.randn(3, 3, 4), "ids": torch.randint(0, 5, (3, 3))}


def variances_apart(found: Tensor, expected: Tensor) -> float:
    """The largest z-score of the difference of two variances, of (runs, copies, numbers) each."""
    squares = [(side - side.mean((0, 1))).double().square().mean(1) for side in (found, expected)]
    error = sum(own.var(0) / len(own) for own in squares).sqrt()  # type: ignore[union-attr]
    return float(((squares[0].mean(0) - squares[1].mean(0)) / error).abs().max())


@pytest.mark.parametrize(
    ("method", "path"), [("flipout", ".onnx"), ("lrt", ".onnx"), ("flipout", ".pt2")], indirect=["path"]
)
def test_noise_of_every_kind_of_layer(method: Any, path: Path) -> None:
    model, inputs = branches(method)
    metadata = bayesify.export(model, path, ({"x": inputs["x"], "ids": inputs["ids"]}), noise=True)
    assert (metadata["inputs"], metadata["dynamic_batch"]) == (["x", "ids"], True)
    run = opened(path)
    copies = {name: tensor.flip(1)[:1].expand(32, *tensor.shape[1:]).contiguous() for name, tensor in inputs.items()}
    found = [run(**copies) for _ in range(60)]
    with torch.no_grad():
        expected = [model(**copies) for _ in range(60)]
    assert list(found[0]) == metadata["outputs"] == list(expected[0])
    for name in metadata["outputs"]:
        assert not torch.equal(found[0][name], found[1][name]), name
        assert len(found[0][name].unique(dim=0)) >= 4, name  # each example has signs of its own
        assert variances_apart(*(torch.stack([own[name] for own in side]) for side in (found, expected))) < 7, name


def test_a_converted_program_is_exported_too(path: Path) -> None:
    x = torch.randn(3, 4)
    plain = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
    program = torch.export.export(plain, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    model = bayesify.convert(program.module(), {"posterior": {"init_std": 0.2}})
    bayesify.export(model, path, x, noise=True)
    run = opened(path)
    assert not torch.equal(run(x[:2])["output"], run(x[:2])["output"])


def test_the_mean_is_the_plain_network(path: Path) -> None:
    model, inputs = branches("flipout")
    bayesify.export(model, path, dict(inputs), mean=True)
    larger = {name: torch.cat([tensor, tensor]) for name, tensor in inputs.items()}
    with torch.no_grad(), bayesify.posterior_mean(model):
        expected = model(**larger)
    for name, tensor in opened(path)(**larger).items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-4, atol=1e-5)


def test_samples_have_the_exact_variance(path: Path) -> None:
    """A linear layer's output has variance Σᵢ xᵢ² stdᵢ², and the file's estimate of it is unbiased."""
    model = bayesify.convert(nn.Linear(4, 2), {"posterior": {"init_std": 0.3}})
    x = torch.tensor([[1.0, -2.0, 0.5, 1.0], [0.0, 1.0, 1.0, 2.0]])
    bayesify.export(model, path, x, samples=8, task="regression", observation_noise=0.5)
    run, exact = opened(path), x.square() @ model.weight_std.detach().square().t()
    found = [run(x.repeat(16, 1)) for _ in range(100)]
    epistemic = torch.stack([outputs["epistemic"].view(16, 2, 2).mean(0) for outputs in found]).double()
    z = (epistemic.mean(0) - exact) / (epistemic.std(0) / len(found) ** 0.5)
    assert z.abs().max() < 6
    torch.testing.assert_close(found[0]["variance"], found[0]["epistemic"] + 0.25)
    assert not torch.equal(found[0]["mean"], found[1]["mean"])


def test_samples_of_a_calibrated_classifier(path: Path) -> None:
    torch.manual_seed(0)
    model = bayesify.convert(nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3)), "flipout").eval()
    bayesify.set_posterior_std(model, 0.2)
    x, labels = torch.randn(64, 4), torch.randint(3, (64,))
    fitted = bayesify.calibrate(model, [(x, labels)], task="classification", seed=0)
    metadata = bayesify.export(model, path, x[:5], samples=8)
    assert metadata["task"] == "classification"
    assert metadata["temperature"] == fitted.temperature != 1
    run = opened(path)
    found = [run(x[:7]) for _ in range(60)]
    assert list(found[0]) == ["probability", "entropy", "mutual_information"]
    want = bayesify.predict(model, x[:7], samples=4000, task="classification", seed=1)
    mean = torch.stack([outputs["probability"] for outputs in found]).mean(0)
    assert float(((mean - want.mean) / (want.std / 400**0.5)).abs().max()) < 6  # of 480 and 4,000 draws
    one = found[0]
    torch.testing.assert_close(one["entropy"], torch.special.entr(one["probability"]).sum(-1), rtol=1e-4, atol=1e-5)
    assert ((one["mutual_information"] >= 0) & (one["mutual_information"] <= one["entropy"])).all()


def test_draws_are_those_that_draw_holds(path: Path) -> None:
    model = bayesify.convert(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)), "lrt").eval()
    bayesify.set_posterior_std(model, 0.2)
    x = torch.randn(1, 4)
    bayesify.export(model, path, x, draws=4, seed=3, task="classification")
    with torch.no_grad(), bayesify.draw(model, seed=3, draws=4):
        probabilities = model(x.expand(4, 4)).softmax(-1)
    run = opened(path)
    torch.testing.assert_close(run(x)["probability"][0], probabilities.mean(0), rtol=1e-4, atol=1e-6)
    assert torch.equal(run(x)["probability"], run(x)["probability"])
    assert run(x.repeat(9, 1))["entropy"].shape == (9,)


class Shadowed(nn.Module):
    """Names of values that torch gives in a graph too, and a computed weight."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.utils.parametrizations.weight_norm(nn.Linear(3, 3))

    def forward(self, mean: Tensor, add: Tensor, scale: float = 2.0) -> tuple[Tensor, Tensor]:
        return self.norm(mean).mean(0) + add, (mean * scale).sum()


def test_names_and_computed_weights_and_inputs_without_a_batch(path: Path) -> None:
    model = bayesify.convert(Shadowed().eval(), {"posterior": {"init_std": 0.2}})
    inputs = [(torch.randn(size, 3), torch.ones(3), 3.0) for size in (2, 4)]
    metadata = bayesify.export(model, path, inputs, draws=2, output=0)
    assert metadata["inputs"] == ["mean", "add"]
    assert metadata["outputs"] == ["mean_output", "variance"]
    assert opened(path)(torch.randn(6, 3), torch.ones(3))["mean_output"].shape == (3,)


def test_metadata_stands_in_the_file_and_no_path_of_this_machine(path: Path) -> None:
    plain = nn.Sequential(nn.Linear(4, 2))
    metadata = bayesify.export(bayesify.convert(plain, "lrt"), path, torch.ones(2, 4), noise=True)
    assert metadata["policy"]["method"] == "lrt"
    assert metadata["methods"] == {"lrt": 1}
    if path.suffix == ".onnx":
        kept = pytest.importorskip("onnx").load(path).metadata_props
        texts = [path.read_bytes()]
        assert json.loads({own.key: own.value for own in kept}["bayesify"]) == metadata
    else:
        extra = {"bayesify.json": ""}
        torch.export.load(path, extra_files=extra)
        assert json.loads(extra["bayesify.json"]) == metadata
        with zipfile.ZipFile(path) as archive:
            texts = [archive.read(name) for name in archive.namelist()]
    assert not any(word in text for text in texts for word in (b"site-packages", str(Path.cwd()).encode(), b".py\""))


def test_a_wrong_file_is_not_written(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sign that is drawn while the model is traced is a constant of the file, and its noise another."""
    path.write_bytes(b"older")
    model = bayesify.convert(nn.Linear(4, 64, bias=False), {"posterior": {"init_std": 0.3}})
    drawn = noise.normal_like
    monkeypatch.setattr(noise, "normal_like", lambda t: 0.2 * drawn(t) if torch.compiler.is_exporting() else drawn(t))
    with pytest.raises(ExportMismatchError, match=r"std of the file's output 'output' is 0\.2\d times the model's"):
        bayesify.export(model, path, torch.randn(2, 4), noise=True)
    assert path.read_bytes() == b"older"
    assert [own.name for own in path.parent.iterdir()] == [path.name]


def test_other_numbers_are_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    clean = onnx_file._clean

    def damaged(model: Any) -> None:
        clean(model)
        model.graph.initializer[0].raw_data = bytes(len(model.graph.initializer[0].raw_data))

    monkeypatch.setattr(onnx_file, "_clean", damaged)
    with pytest.raises(ExportMismatchError, match="output 'output' is off by"):
        bayesify.export(bayesify.convert(nn.Linear(4, 2)), tmp_path / "net.onnx", torch.randn(2, 4), mean=True)
    assert not list(tmp_path.iterdir())


class OneSize(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.view(2, 4))


def test_what_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x, path = bayesify.convert(nn.Linear(4, 2)), torch.randn(2, 4), tmp_path / "net.pt2"
    for words, arguments in (
        ("by one of mean, noise, samples=K and draws=K; given: none of them", {}),
        ("given: mean and noise", {"mean": True, "noise": True}),
        ("samples=1: a spread needs 2", {"samples": 1}),
        ("mean gives plain outputs", {"mean": True, "task": "classification"}),
        ("needs its observation noise", {"draws": 2, "task": "regression"}),
    ):
        with pytest.raises(UsageError, match=words):
            bayesify.export(model, path, x, **arguments)
    with pytest.raises(UsageError, match=r"\.onnx for ONNX, \.pt2 for torch\.export"):
        bayesify.export(model, tmp_path / "net.tflite", x, mean=True)
    with pytest.raises(UsageError, match="fails with these example_inputs"):
        bayesify.export(model, path, torch.randn(2, 5), mean=True)
    with pytest.raises(bayesify.errors.NotVariationalError):
        bayesify.export(nn.Linear(4, 2), path, x, mean=True)
    with pytest.raises(UsageError, match="dynamic_batch=False"):
        bayesify.export(bayesify.convert(OneSize()), path, x, mean=True)
    bayesify.export(bayesify.convert(OneSize()), path, x, mean=True, dynamic_batch=False)
    with pytest.raises(UsageError, match="exists already"):
        bayesify.export(model, path, x, mean=True, overwrite=False)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UsageError, match=r'needs onnxruntime, which is not .*: pip install "bayesify\[export\]"'):
        bayesify.export(model, tmp_path / "net.onnx", x, mean=True)
