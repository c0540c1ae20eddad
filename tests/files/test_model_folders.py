"""Folders of transformers, peft, timm and diffusers in and out again, and checkpoints of trainers: bit for bit."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bayesify
from bayesify.errors import BayesifyError, FileRefusedError, UsageError
from bayesify.files.model_factory import build_model
from bayesify.files.model_folder.record import _digest, file_digest
from bayesify.files.model_folder.writing import plain_state
from tests.files import folders
from tests.files.folders import CHECKPOINTS, FOLDERS, bert, net

pytestmark = pytest.mark.usefixtures("_libraries")


@pytest.fixture(scope="module")
def _libraries(vision: Any) -> None:
    """transformers and timm import torchvision where it is."""
    pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, _libraries: None) -> Path:
    """A folder of transformers, and beside it what conversion makes of it."""
    place = tmp_path_factory.mktemp("made")
    folders.saved_by_transformers(place / "bert")
    model = bayesify.convert(bayesify.load(place / "bert"))
    for _, layer in bayesify.variational_layers(model):
        layer.scale_of("weight").data += torch.rand(())  # type: ignore[union-attr]
    bayesify.save(model, place / "bert.flipout", like=place / "bert")
    return place


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype and torch.equal(one[name], other[name]) for name in one
    )


def by_its_library(name: str, folder: Path) -> nn.Module:
    """The network as its own library opens it."""
    if name == "timm":
        import timm

        return timm.create_model(f"local-dir:{folder}", pretrained=True).eval()  # type: ignore[no-any-return]
    if name == "diffusers":
        import diffusers

        return diffusers.UNet2DModel.from_pretrained(folder).eval()  # type: ignore[no-any-return]
    import transformers

    if name == "peft":
        import peft

        base = transformers.BertForSequenceClassification.from_pretrained(folder.parent / "base")
        return peft.PeftModel.from_pretrained(base, folder).eval()  # type: ignore[no-any-return]
    config = json.loads((folder / "config.json").read_text())
    return getattr(transformers, config["architectures"][0]).from_pretrained(folder)  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_in_and_out_again(name: str, tmp_path: Path) -> None:
    source, target = tmp_path / "model", tmp_path / "model.flipout"
    FOLDERS[name](source)
    plain = bayesify.load(source)
    assert same(plain.state_dict(), by_its_library(name, source).state_dict())
    assert {n: p.shape for n, p in bayesify.load(source, meta=True).state_dict().items()} == {
        n: p.shape for n, p in plain.state_dict().items()
    }
    model = bayesify.convert(plain, "lora" if name == "peft" else "flipout")
    before = hashes(source)
    bayesify.save(model, target, like=source)
    again = bayesify.load(target)
    assert same(again.state_dict(), model.state_dict())
    assert torch.equal(bayesify.kl(again), bayesify.kl(model))
    assert [p.requires_grad for p in again.parameters()] == [p.requires_grad for p in model.parameters()]
    assert same(by_its_library(name, target).state_dict(), plain.state_dict())
    assert hashes(source) == before
    weights = (".safetensors", ".bin", ".index.json")
    assert {path for path in before if not path.name.endswith(weights)} <= set(hashes(target))
    assert [path for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def hashes(folder: Path) -> dict[Path, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_checkpoint_in_and_out_again(name: str, tmp_path: Path) -> None:
    told: list[str] = []
    path = CHECKPOINTS[name](tmp_path)
    model = build_model("tests.files.folders:Net", weights=path, tell=told.append)
    assert same(model.state_dict(), net().state_dict())
    bayesify.save(bayesify.convert(model), tmp_path / "m.pt")
    again = bayesify.load(tmp_path / "m.pt", allow="tests.files.folders.Net")
    assert same(bayesify.revert(again).state_dict(), net().state_dict())
    assert any("stripped 'net.' from the names" in note for note in told) == (name == "Lightning")


def test_a_folder_keeps_what_training_and_calibration_changed(made: Path, tmp_path: Path) -> None:
    model = bayesify.load(made / "bert.flipout")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.01 * torch.randn_like(parameter)
    inputs = {"input_ids": torch.randint(30, (8, 5)), "labels": torch.randint(3, (8,))}
    loader = [({"input_ids": inputs["input_ids"]}, inputs["labels"])]
    bayesify.calibrate(model, loader, task="classification", output="logits", samples=4)
    bayesify.save(model.train(), tmp_path / "new", like=made / "bert.flipout")
    again = bayesify.load(tmp_path / "new", map_location="cpu")
    assert same(again.state_dict(), model.state_dict())
    assert again.training
    how: Any = {"task": "classification", "output": "logits", "samples": 4, "seed": 1}
    found, expected = (bayesify.predict(m, input_ids_of(inputs), **how) for m in (again, model))
    assert torch.equal(found.mean, expected.mean)
    assert found.conformal == expected.conformal
    kept = json.loads((tmp_path / "new" / "bayesify.json").read_text())
    assert kept["policy"]["method"] == "flipout"
    assert kept["versions"]["torch"] == torch.__version__
    assert (tmp_path / "new" / "config.json").read_bytes() == (made / "bert" / "config.json").read_bytes()


def input_ids_of(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return {"input_ids": inputs["input_ids"]}


def test_a_folder_without_a_source(tmp_path: Path) -> None:
    model = bayesify.convert(bert())
    bayesify.save(model, f"{tmp_path}/made/")
    assert same(bayesify.load(tmp_path / "made").state_dict(), model.state_dict())
    with pytest.raises(UsageError, match="no folder that a library would open"):
        bayesify.save(bayesify.convert(net()), f"{tmp_path}/net/")


def test_the_plain_state_is_that_of_the_plain_model() -> None:
    plain = bert()
    assert same(plain_state(bayesify.convert(plain, {"method": "lrt", "bias": "variational"})), plain.state_dict())


def test_what_is_there_is_replaced_as_a_whole_or_not_at_all(made: Path, tmp_path: Path, monkeypatch: Any) -> None:
    model = bayesify.load(made / "bert.flipout")
    place = tmp_path / "place"
    place.mkdir()
    (place / "mine.txt").write_text("mine")
    with pytest.raises(UsageError, match="a folder with other things in it"):
        bayesify.save(model, place, like=made / "bert")
    (place / "mine.txt").unlink()
    bayesify.save(model, place, like=made / "bert")
    with pytest.raises(UsageError, match="exists already"):
        bayesify.save(model, place, like=made / "bert", overwrite=False)
    bayesify.save(model, place, like=made / "bert")
    with pytest.raises(UsageError, match="itself, which is never overwritten"):
        bayesify.save(model, made / "bert", like=made / "bert")
    before = hashes(place)
    monkeypatch.setattr("bayesify.files.model_folder.writing.record_text", interrupted)
    with pytest.raises(KeyboardInterrupt):
        bayesify.save(model, place, like=made / "bert")
    assert hashes(place) == before
    assert [path.name for path in tmp_path.iterdir()] == ["place"]


def interrupted(record: object) -> str:
    raise KeyboardInterrupt


def test_two_steps_where_the_system_has_no_exchange(made: Path, tmp_path: Path, monkeypatch: Any) -> None:
    model = bayesify.load(made / "bert.flipout")
    bayesify.save(model, tmp_path / "place", like=made / "bert")
    monkeypatch.setattr("bayesify.files.whole_folder._exchanged", lambda fresh, target: False)
    model.train()
    bayesify.save(model, tmp_path / "place", like=made / "bert")
    assert bayesify.load(tmp_path / "place").training
    assert [path.name for path in tmp_path.iterdir()] == ["place"]


CHANGES: dict[str, tuple[Any, str]] = {
    "a class of no library": ({"architectures": ["OurBert"], "auto_map": {"AutoModel": "a.B"}}, "code that a folder"),
    "another class": ({"architectures": ["GPT2LMHeadModel"]}, "correct one of them"),
    "a class of torch": ({"architectures": ["torch"]}, "is not one of transformers"),
    "quantized": ({"quantization_config": {"quant_method": "bitsandbytes"}}, "quantized"),
    "fetched": ({"backbone": "hf-hub:somebody/model"}, "would be fetched"),
    "another size": ({"hidden_size": 12}, "don't fit"),
    "more layers": ({"num_hidden_layers": 2}, "lacks 16 tensors"),
    "a network without end": ({"max_position_embeddings": 10**9}, "says `max_position_embeddings`"),
    "layers without end": ({"num_hidden_layers": 10**6}, "a network of endless parts"),
    "more layers than can be counted": ({"num_hidden_layers": 10**400}, "says `num_hidden_layers`"),
    "labels without end": ({"num_labels": 10**9}, "says `num_labels`"),
    "a larger network": ({"vocab_size": 60_000, "hidden_size": 4096}, "a network of [0-9]+ MiB"),
    "no sense": ({"hidden_size": "eight"}, "describes no model"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_configuration_that_asks_for_something_else(name: str, made: Path, tmp_path: Path) -> None:
    change, message = CHANGES[name]
    folder = shutil.copytree(made / "bert", tmp_path / "bert")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(FileRefusedError, match=message):
        bayesify.load(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"_class_name": "UNet2DMode"}, "no network of diffusers\\. Did you mean 'UNet2DModel'"),
        ({"_class_name": "DDPMScheduler"}, "no network of diffusers"),
        ({"layers_per_block": 2}, "4 of other shapes"),
        ({"norm_num_groups": 0}, "describes no UNet2DModel"),
        ({"block_out_channels": [8, 2**20]}, "do not belong together"),
    ],
)
def test_a_configuration_of_diffusers(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    folders.of_diffusers(tmp_path)
    config = tmp_path / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | change))
    with pytest.raises(FileRefusedError, match=message):
        bayesify.load(tmp_path)


def test_a_pipeline_of_diffusers_names_its_networks(tmp_path: Path) -> None:
    folders.of_diffusers(tmp_path / "unet")
    (tmp_path / "model_index.json").write_text("{}")
    with pytest.raises(FileRefusedError, match="is a pipeline of diffusers; name one of its networks: unet"):
        bayesify.load(tmp_path)


def test_a_record_names_files_beside_it_only(made: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside.json"
    outside.write_text("{}")
    bayesify.save(bayesify.convert(bayesify.load(made / "bert")), tmp_path / "b", like=made / "bert")
    record = json.loads((tmp_path / "b/bayesify.json").read_text())
    record["files"][str(outside)] = file_digest(outside)
    record.pop("sha256")
    (tmp_path / "b/bayesify.json").write_text(json.dumps({**record, "sha256": _digest(record)}))
    with pytest.raises(FileRefusedError, match="damaged"):
        bayesify.load(tmp_path / "b")


def test_what_a_configuration_may_not_choose_is_left_out(made: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(made / "bert", tmp_path / "bert")
    config = json.loads((folder / "config.json").read_text())
    asked = {"attn_implementation": "somebody/kernels", "auto_map": {"AutoConfig": "evil.Config"}, "_secret": 1}
    (folder / "config.json").write_text(json.dumps(config | asked))
    (folder / "evil.py").write_text("raise SystemExit('was run')")
    model: Any = bayesify.load(folder)
    assert not any(hasattr(model.config, name) for name in ("auto_map", "_secret"))
    assert model.config._attn_implementation in ("sdpa", "eager")


def test_300_flipped_bits_and_100_cuts_of_a_folder(made: Path, tmp_path: Path) -> None:
    """Each is refused, or harmless: the same model; those of the plain weights and of the configuration too."""
    expected = bayesify.load(made / "bert.flipout")
    folder = shutil.copytree(made / "bert.flipout", tmp_path / "folder")
    names = ("bayesify.json", "bayesify.safetensors", "model.safetensors", "config.json")
    random, refused = Random(0), 0
    for trial in range(400):
        path = folder / names[trial % 4]
        whole = path.read_bytes()
        at = random.randrange(len(whole))
        changed = whole[:at] if trial >= 300 else flipped(whole, at, random.randrange(8))
        path.write_bytes(changed)
        try:
            opened = bayesify.load(folder)
            assert same(opened.state_dict(), expected.state_dict()), (path.name, at)
            assert torch.equal(bayesify.kl(opened), bayesify.kl(expected))
        except BayesifyError:
            refused += 1
        path.write_bytes(whole)
    assert refused > 390


def flipped(whole: bytes, at: int, bit: int) -> bytes:
    return whole[:at] + bytes([whole[at] ^ (1 << bit)]) + whole[at + 1 :]


def test_a_newer_folder_and_one_without_its_scales(made: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(made / "bert.flipout", tmp_path / "folder")
    record = (folder / "bayesify.json").read_text()
    (folder / "bayesify.json").write_text(record.replace('"format": 1', '"format": 2', 1))
    with pytest.raises(FileRefusedError, match="install a newer bayesify"):
        bayesify.load(folder)
    (folder / "bayesify.json").write_text(record)
    (folder / "bayesify.safetensors").unlink()
    with pytest.raises(UsageError, match="no such file"):
        bayesify.load(folder)
    with pytest.raises(FileRefusedError, match="open it itself"):
        build_model("tests.files.folders:Net", weights=folder)


def test_adapters_of_a_base_that_is_not_here(tmp_path: Path) -> None:
    folders.of_peft(tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"base_model_name_or_path": "somebody/base"}))
    with pytest.raises(UsageError, match=r"adapter of 'somebody/base'.*--base FOLDER"):
        bayesify.load(tmp_path / "adapter")
    model = bayesify.load(tmp_path / "adapter", into=bert())
    assert same(model.state_dict(), by_its_library("peft", tmp_path / "adapter").state_dict())
    for change in ({"megatron_config": {"x": 1}}, {"peft_type": "XLORA"}, {"init_lora_weights": "corda"}):
        path.write_text(json.dumps(config | change))
        with pytest.raises(FileRefusedError):
            bayesify.load(tmp_path / "adapter")
