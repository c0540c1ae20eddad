"""A model as a folder: what its library's own saver writes, the other files of the folder it came from, the record."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import BayesifyError, UsageError
from ...escaping import first_line
from ...nn.base import Variational
from ...nn.posterior_tensors import added_names
from ..json_file import read_json
from ..model_file.conversion import conversion_of, tensors_of
from ..model_file.opening import is_converted
from ..model_file.write import bytes_of, description_of, forms_of
from ..weight_files import INDEX, RECORD, SCALES, refuse_other_folder, shards_of
from ..whole_folder import whole_folder
from . import of_peft
from .configuration import FILES, Kind, configured
from .libraries import library
from .of_transformers import quiet
from .opening import converted, plain_network, storages_of
from .record import Record, file_digest, placed, read_record, record_text


def save_folder(
    model: nn.Module, target: Path, like: Path | None, *, overwrite: bool
) -> None:
    """Write the model to a folder that its library opens as the plain network, and `load` as what it is.

    It is opened again, and all of it compared, before it takes the target's place.

    Raises:
        UsageError: the model is not one that has folders, or its library does not give it back as it is.
        FileExistsError, OSError: see `whole_folder`.
    """
    kind = _kind(model, like)
    with whole_folder(target, overwrite=overwrite) as fresh:
        try:
            _write_plain(model, kind, fresh, like)
            if like is not None:
                _copy_others(like, fresh)
            again = plain_network(fresh, None, meta=False, tell=lambda note: None)
            if is_converted(model):
                _write_record(model, kind, fresh, again)
                again = converted(fresh, read_record(fresh), again, meta=False)
        except BayesifyError as error:
            text = str(error).removeprefix(f"{fresh}: ").replace(str(fresh), str(target))
            raise UsageError(f"{target}: would not open again ({text}); save it to a file") from error
        lost = _difference(model, again)
        if lost is not None:
            raise UsageError(f"{target}: {kind} would not give back {lost}; save it to a file")
        refuse_other_folder(target)


def _kind(model: nn.Module, like: Path | None) -> Kind:
    """The library whose folder it becomes: by the classes that the model has, or by the folder it is like."""
    bases = {base.__module__ + "." + base.__qualname__ for base in type(model).__mro__}
    if "peft.peft_model.PeftModel" in bases:
        return "peft"
    if "transformers.modeling_utils.PreTrainedModel" in bases:
        return "transformers"
    if like is not None and (found := configured(like).kind) in _PLAIN_FILES:
        return found
    raise UsageError(
        f"a {type(model).__name__} has no folder that a library would open: that have models of transformers and peft, "
        "and those of timm and diffusers with like=FOLDER; save it to a file"
    )


def _write_plain(model: Any, kind: Kind, fresh: Path, like: Path | None) -> None:
    state = plain_state(model)
    try:
        if kind in _PLAIN_FILES:
            _write_tensors(fresh / _PLAIN_FILES[kind], {name: tensor.contiguous() for name, tensor in state.items()})
        elif kind == "peft":
            of_peft.write(model, fresh, plain=state)
        else:
            with quiet(library("transformers", fresh)):
                model.save_pretrained(fresh, state_dict=state, max_shard_size=_shard_size(like))
            _keep_configuration(model, fresh, like)
    except (RuntimeError, ValueError, TypeError, AttributeError, KeyError) as error:
        raise UsageError(f"{kind} cannot write it: {first_line(error)}") from error


def _shard_size(like: Path | None) -> int | str:
    """The largest shard of the folder that this one is like, so that it has shards too; else transformers' own."""
    index = None if like is None else next(like.glob(f"*{INDEX}"), None)
    return "50GB" if index is None else max(shard.stat().st_size for shard in shards_of(index).names)


def plain_state(model: nn.Module) -> dict[str, Tensor]:
    """The model's state_dict, without what posteriors added."""
    added = {
        f"{path}.{name}".lstrip(".")
        for path, layer in model.named_modules(remove_duplicate=False)
        if isinstance(layer, Variational)
        for name in added_names(layer)
    }
    return {name: value for name, value in model.state_dict().items() if name not in added}


def _keep_configuration(model: Any, fresh: Path, like: Path | None) -> None:
    """The configuration stays as it was, byte for byte, except for the dtype where the weights have another now."""
    source = None if like is None else like / FILES["transformers"]
    if source is None or not source.is_file():
        return
    said, now = read_json(source), str(model.dtype).removeprefix("torch.")
    name = "torch_dtype" if "torch_dtype" in said else "dtype"
    if said.get(name, now) == now:
        shutil.copyfile(source, fresh / source.name)
    else:
        (fresh / source.name).write_text(json.dumps({**said, name: now}, indent=2) + "\n")


def _copy_others(like: Path, fresh: Path) -> None:
    """The folder's other files: tokenizers, templates, what its author says of it; not its hidden folders."""
    for place, folders, names in os.walk(like):
        folders[:] = [name for name in folders if not name.startswith(".")]
        inside = Path(place).relative_to(like)
        for name in names:
            target = fresh / inside / name
            written = name in _OURS or name.endswith(_WEIGHTS) or name == FILES["peft"] or target.exists()
            if not written and os.path.isfile(os.path.join(place, name)):
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(os.path.join(place, name), target)


def _write_record(model: nn.Module, kind: Kind, fresh: Path, plain: nn.Module) -> None:
    """The record, and apart the tensors that the plain network does not bring."""
    description, storages = description_of(model, factory=None, structure=False)
    known = storages_of(plain)
    apart = [key for key, memory in storages.items() if key not in known or not _same(known[key], memory)]
    entries = placed(forms_of(model, storages), apart)
    with open(fresh / SCALES, "wb") as file:
        file.write(_header(entries))
        for name in apart:
            file.write(bytes_of(storages[name]))
    record = Record(description, entries, {FILES[kind]: file_digest(fresh / FILES[kind])})
    (fresh / RECORD).write_text(record_text(record))


def _same(one: torch.UntypedStorage, other: torch.UntypedStorage) -> bool:
    return one.nbytes() == other.nbytes() and bytes_of(one) == bytes_of(other)


def _write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    entries = placed({name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}, tensors)
    with open(path, "wb") as file:
        file.write(_header({"__metadata__": {"format": "pt"}, **entries}))
        for tensor in tensors.values():
            file.write(bytes_of(tensor.detach().clone().untyped_storage()))


def _header(entries: Mapping[str, Any]) -> bytes:
    header = json.dumps(entries).encode()
    header += b" " * (-(8 + len(header)) % 64)
    return len(header).to_bytes(8, "little") + header


def _difference(model: nn.Module, again: nn.Module) -> str | None:
    return next(_differences(model, again), None)


def _differences(model: nn.Module, again: nn.Module) -> Iterator[str]:
    mine, theirs = tensors_of(model), tensors_of(again)
    yield from (f"tensor {name!r}" for name in sorted(mine.keys() ^ theirs.keys()))
    for name, tensor in mine.items():
        other = theirs[name]
        if tensor.dtype != other.dtype or tensor.shape != other.shape or not torch.equal(_bits(tensor), _bits(other)):
            yield f"tensor {name!r} as it is"
    if is_converted(model):
        yield from (f"whether {name!r} is trained" for name, tensor in mine.items() if _frozen(tensor, theirs[name]))
        said, opened = conversion_of(model), conversion_of(again)
        yield from (f"what conversion says of {part!r}" for part in said if said[part] != opened[part])


def _frozen(tensor: Tensor, other: Tensor) -> bool:
    return tensor.requires_grad != other.requires_grad


def _bits(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().reshape(-1).contiguous().view(torch.uint8)


# of the libraries whose folder is no more than the weights beside a configuration that stays as it is
_PLAIN_FILES: dict[Kind, str] = {"timm": "model.safetensors", "diffusers": "diffusion_pytorch_model.safetensors"}
_OURS = (RECORD, SCALES)
_WEIGHTS = (
    ".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".gguf", ".onnx", ".pb", INDEX, ".ot",
)  # fmt: skip
