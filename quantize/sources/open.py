"""Opens a checkpoint with the source for its format.

Contract: the format is recognized by file names and config.json's quantization_config. The first of these is used:
Hugging Face's safetensors, Mistral's release, Hugging Face's pickled .bin, GGUF. Pickled files are refused unless
allowed.
"""

from __future__ import annotations

import re
from pathlib import Path

from mixq.errors import ModelFileError, UsageError, printable
from mixq.formats.json_file import parse_json_object
from mixq.formats.shards import INDEX, SINGLE, parse_index
from mixq.formats.weights import StoredTensors
from mixq.quantize.sources.awq import AwqSource
from mixq.quantize.sources.gptq import GptqSource
from mixq.quantize.sources.hub import Hub, is_repository
from mixq.quantize.sources.huggingface import HuggingFaceSource
from mixq.quantize.sources.mistral import PARAMS, MistralSource
from mixq.quantize.sources.place import Folder, Place
from mixq.quantize.sources.source import CONFIG, Source
from mixq.system import paths

BIN_INDEX = "pytorch_model.bin.index.json"
BIN_SINGLE = "pytorch_model.bin"
BIN_NAME = re.compile(r"[\w.-]+\.bin", re.ASCII)
CONSOLIDATED = re.compile(r"consolidated(\.\d+)?\.(safetensors|pth|pt)")


def open_source(path: Path | str, *, allow_pickle: bool = False, mixq_folders: bool = False) -> Source:
    """Open the checkpoint in a folder, or a GGUF file.

    Args:
        path: the folder or file.
        allow_pickle: read .bin, .pt and .pth files, with torch's restricted unpickler.
        mixq_folders: also accept folders written by mixq (for `mixq export`).

    Raises:
        ModelFileError: damaged, or not a format that mixq reads.
        UsageError: there are only pickled weights, which were not allowed.
    """
    path = Path(path)
    if path.suffix == ".gguf":
        return _gguf(path)
    if path.is_file():
        raise UsageError(f"{printable(path)} is one file of a checkpoint.", hint="Use its folder, or a GGUF file.")
    return open_place(Folder(path), allow_pickle=allow_pickle, mixq_folders=mixq_folders)


def find_source(text: str, *, allow_pickle: bool = False, revision: str | None = None) -> Source:
    """Open a folder or GGUF file, a name in the model store, or a repository on a hub.

    Args:
        text: the first of these that exists is used.
        allow_pickle: see `open_source`.
        revision: branch, tag or commit of a repository.

    Raises:
        ModelFileError: the name is unknown; see also `open_source`.
        UsageError: a revision, but not of a repository.
        StorageError: the hub cannot be reached.
    """
    as_path, in_store = paths.expand(text), paths.store() / text
    local = next((path for path in (as_path, in_store) if text and path.exists()), None)
    if local is not None:
        if revision is not None:
            raise UsageError(
                f"--revision is for repositories, and {printable(text)} is on this computer.",
                hint="Omit --revision; to use the repository of that name, run the command from another folder.",
            )
        return open_source(local, allow_pickle=allow_pickle)
    if is_repository(text):
        return open_place(Hub(text, revision), allow_pickle=allow_pickle)
    raise ModelFileError(
        f"{printable(text)!r} is not a folder, GGUF file, model in the store, or name of a repository (owner/name).",
        hint=f"Models in the store are folders under {printable(paths.store())}.",
    )


def open_place(place: Place, *, allow_pickle: bool = False, mixq_folders: bool = False) -> Source:
    """Open the checkpoint at a place; see `open_source`."""
    files = place.files
    if CONFIG in files and (INDEX in files or SINGLE in files):
        return _safetensors(place, mixq_folders=mixq_folders)
    consolidated = sorted(name for name in files if CONSOLIDATED.fullmatch(name))
    if PARAMS in files and consolidated:
        safe = [name for name in consolidated if name.endswith(".safetensors")]
        if safe:
            return MistralSource(place, place.safetensors(safe, None), safe)
        return MistralSource(place, _pickled(place, consolidated, allow_pickle), consolidated)
    if CONFIG in files and (BIN_INDEX in files or BIN_SINGLE in files):
        names = [BIN_SINGLE]
        if BIN_SINGLE not in files:
            weight_map = parse_index(parse_json_object(place.read(BIN_INDEX), BIN_INDEX), BIN_NAME)
            names = sorted(set(weight_map.values()))
        return HuggingFaceSource(place, _pickled(place, names, allow_pickle), names)
    models = sorted(name for name in files if name.endswith(".gguf"))
    if models and place.path is not None:
        return _gguf(_only_gguf(place.path, models))
    raise _nothing_there(place, mixq_folders)


def _safetensors(place: Place, *, mixq_folders: bool) -> Source:
    weight_map = None
    if SINGLE not in place.files:
        weight_map = parse_index(parse_json_object(place.read(INDEX), INDEX))
    names = [SINGLE] if weight_map is None else sorted(set(weight_map.values()))
    quantization = parse_json_object(place.read(CONFIG), CONFIG).get("quantization_config")
    method = quantization.get("quant_method") if isinstance(quantization, dict) else None
    if method == "mixq" and not mixq_folders:
        raise ModelFileError(
            f"{printable(place.name)} is quantized already, by mixq.",
            hint="Quantize the original checkpoint, or convert this folder with mixq export.",
        )
    kind = {"gptq": GptqSource, "awq": AwqSource}.get(str(method), HuggingFaceSource)
    return kind(place, place.safetensors(names, weight_map), names)


def _pickled(place: Place, names: list[str], allow_pickle: bool) -> StoredTensors:
    from mixq.quantize.sources.pickled import PickledTensors

    if place.path is None:
        raise UsageError(
            f"{printable(place.name)} has only pickled weights ({printable(names[0])}), which cannot be read tensor "
            "by tensor from the hub.",
            hint="Download the repository, and quantize its folder with --allow-pickle.",
        )
    if not allow_pickle:
        raise UsageError(
            f"{printable(names[0])} is a pickled file, which can contain programs.",
            hint="If you trust its origin, use --allow-pickle: torch's restricted unpickler should run no program. "
            "A safetensors checkpoint is safer.",
        )
    return PickledTensors(place.path, names)


def _gguf(path: Path) -> Source:
    from mixq.quantize.sources.gguf import GgufSource

    return GgufSource(path)


def _only_gguf(folder: Path, names: list[str]) -> Path:
    """Return the model file of a folder, or its first part."""
    firsts = [name for name in names if not re.search(r"-\d{5}-of-\d{5}\.gguf$", name) or "-00001-of-" in name]
    if len(firsts) != 1:
        raise UsageError(
            f"{printable(folder)} holds {len(firsts)} GGUF models.", hint="Name one of the files: FOLDER/NAME.gguf."
        )
    return folder / firsts[0]


def _nothing_there(place: Place, mixq_folders: bool) -> ModelFileError:
    files = place.files
    shown = printable(place.path or place.name)
    if "job.json" in files:
        return ModelFileError(
            f"{shown} is not finished: a quantize job was interrupted.",
            hint="Run the same mixq quantize command again to resume it.",
        )
    if CONFIG not in files:
        consolidated = next((name for name in files if CONSOLIDATED.fullmatch(name)), None)
        what = f"{shown} has {consolidated} but no {PARAMS}" if consolidated else f"{shown} has no {CONFIG}"
    else:
        what = f"{shown} has no weights: neither {INDEX} nor {SINGLE}"
    return ModelFileError(
        f"{what}.",
        hint="Use a folder in Hugging Face's or Mistral's format, a GGUF file, or a repository's name (owner/name).",
    )
