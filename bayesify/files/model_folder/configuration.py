"""What a folder's configuration says, as plain data: what would fetch or run something is left out or refused."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ...errors import FileRefusedError
from ...escaping import shell_word
from ..json_file import read_json
from ..weight_files import weights_in_folder

Kind = Literal["transformers", "peft", "timm", "diffusers"]
FILES: dict[Kind, str] = {
    "peft": "adapter_config.json", "transformers": "config.json", "timm": "config.json", "diffusers": "config.json"
}  # fmt: skip
PIPELINE = "model_index.json"


@dataclass(frozen=True)
class Configured:
    """A folder, the library whose layout it has, and its configuration."""

    folder: Path
    kind: Kind
    config: dict[str, Any]


def configured(folder: Path) -> Configured:
    """What the folder is.

    Raises:
        FileRefusedError: it has no configuration of a kind that is known; with what it has instead.
    """
    if (folder / FILES["peft"]).is_file():
        return Configured(folder, "peft", cleaned(read_json(folder / FILES["peft"]), folder))
    if (folder / FILES["transformers"]).is_file():
        said = read_json(folder / FILES["transformers"])
        config = cleaned(said, folder)
        if isinstance(config.get("model_type"), str) or isinstance(config.get("architectures"), list):
            return Configured(folder, "transformers", config)
        if isinstance(config.get("architecture"), str):
            return Configured(folder, "timm", config)
        if isinstance(said.get("_class_name"), str):
            return Configured(folder, "diffusers", config)
        lacks = "its config.json has no `model_type` (transformers), `architecture` (timm) or `_class_name` (diffusers)"
    elif (folder / PIPELINE).is_file():
        parts = sorted(path.name for path in folder.iterdir() if (path / FILES["diffusers"]).is_file())
        raise FileRefusedError(f"{folder}: is a pipeline of diffusers; name one of its networks: {', '.join(parts)}")
    else:
        lacks = "it has no config.json that names a model"
    weights_in_folder(folder)
    raise FileRefusedError(
        f"{folder}: holds weights, and {lacks}; name the model's code: "
        f"bayesify convert package.module:Net --weights {shell_word(folder)}"
    )


def cleaned(config: Any, folder: Path) -> Any:
    """A configuration without what would make a library fetch or run something.

    Code that the folder brings along is never run (`auto_map`), attention kernels are not downloaded, and weights come
    from the folder alone.

    Raises:
        FileRefusedError: it asks for what cannot be left out: quantized weights, a network that is fetched.
    """
    if isinstance(config, dict):
        for name in _REFUSED:
            if config.get(name):
                raise FileRefusedError(f"{folder}: its configuration has `{name}`: {_REFUSED[name]}")
        kept = {name: value for name, value in config.items() if _kept(name, value)}
        return {name: value if name in _TEXTS else cleaned(value, folder) for name, value in kept.items()}
    if isinstance(config, list):
        return [cleaned(value, folder) for value in config]
    if isinstance(config, str) and config.startswith(_FETCHED):
        raise FileRefusedError(f"{folder}: its configuration asks for {config[:80]!r}, which would be fetched")
    return config


def _kept(name: str, value: Any) -> bool:
    if name in ("attn_implementation", "_attn_implementation"):
        return value in ("eager", "sdpa")
    return name not in _DROPPED and not name.startswith("_")


_TEXTS = ("id2label", "label2id")  # names that people chose
_FETCHED = ("hf-hub:", "hf_hub:", "local-dir:", "http://", "https://")
_DROPPED = frozenset(
    {
        "auto_map", "auto_mapping", "custom_pipelines", "distributed_config", "experts_implementation", "fusion_config",
        "kernel_config", "name_or_path", "pretrained", "trust_remote_code", "transformers_weights", "use_kernels",
        "use_pretrained_backbone",
    }
)  # fmt: skip
_REFUSED = {
    "quantization_config": "its weights are quantized, and a quantized layer has no weight that could be noisy; "
    "give the folder of the full weights",
    "checkpoint_path": "weights come from the folder itself",
    "megatron_config": "it would import a module that the file names",
}
