"""`--calibrate` in a job: which tensors must be there together, what each Linear's columns count, and going on later.

Contract: a job reads a shard block by block (`blocks`) and gives each block's tensors to `importance` before it writes
them. The text's hidden states at a layer's beginning are saved before the shard in front of it is finished, so that an
interrupted job goes on from there to the same bytes.
"""

from __future__ import annotations

import codecs
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mixq.config import ModelConfig
from mixq.errors import ModelFileError, StorageError, UsageError, printable
from mixq.formats.architecture import Parameter
from mixq.formats.mapped import MappedShard
from mixq.formats.packed import PackedLinear
from mixq.formats.shard_writer import ShardWriter, shard_size
from mixq.kernels import dispatch, native_library
from mixq.quantize.calibrate import Calibration, Importance, windows_of
from mixq.quantize.layout import Item
from mixq.text.tokenizer import Tokenizer

DEFAULT = "default"
TOKENS = 16384
WINDOW = 512
MAX_TEXT = 4 << 20
HIDDEN = "hidden"


@dataclass(frozen=True, slots=True)
class CalibrationText:
    """A text to calibrate on.

    Attributes:
        name: the file's name, or `default` for the text that comes with mixq.
        tokens: how many of its tokens to use, in windows that lie evenly over it.
    """

    name: str
    text: str
    tokens: int = TOKENS

    @classmethod
    def read(cls, where: str, tokens: int = TOKENS) -> CalibrationText:
        """Read a file of UTF-8 text, or the text that comes with mixq for `default`.

        Raises:
            UsageError: no such file, no text, or not a sensible number of tokens.
        """
        if not WINDOW <= tokens <= 1 << 20:
            raise UsageError(f"{tokens} tokens to calibrate on make no sense; give {WINDOW} to {1 << 20}.")
        if where == DEFAULT:
            return cls(DEFAULT, (resources.files("mixq.quantize") / "calibration.txt").read_text("utf-8"), tokens)
        path = Path(where)
        try:
            with path.open("rb") as file:
                # What is cut off at the end may be half a character.
                content = file.read(MAX_TEXT)
                text = codecs.getincrementaldecoder("utf-8")().decode(content, len(content) < MAX_TEXT)
        except UnicodeDecodeError:
            raise UsageError(f"{printable(where)} is not UTF-8 text.") from None
        except OSError as error:
            raise UsageError(
                f"{printable(where)} cannot be read: {printable(error.strerror)}.",
                hint="Give a text file, or `--calibrate default` for the text that comes with mixq.",
            ) from None
        return cls(printable(path.name), text, tokens)

    def as_dict(self) -> dict[str, Any]:
        """Return what decides the bytes of a job, for its settings."""
        return {"text": self.name, "sha256": hashlib.sha256(self.text.encode()).hexdigest(), "tokens": self.tokens}

    def windows(self, tokenizer: Tokenizer) -> list[Tensor]:
        """Return the text's ids, cut into windows; raises UsageError for one too short to say anything."""
        ids = tokenizer.encode(self.text)
        windows = windows_of(ids, tokenizer.bos_id, WINDOW, self.tokens)
        if sum(map(len, windows)) < WINDOW:
            raise UsageError(
                f"{printable(self.name)} has only {len(ids)} of the {WINDOW} tokens that calibrating needs at least.",
                hint="Give a longer text of the kind that the model will see.",
            )
        return windows


class CalibrationRun:
    """The calibration of one job."""

    def __init__(self, config: ModelConfig, windows: Sequence[Tensor]) -> None:
        self._config = config
        self._calibration = Calibration(config, windows, lambda: dispatch.choose(threads=torch.get_num_threads()))

    @property
    def tokens(self) -> int:
        return self._calibration.tokens

    def as_dict(self) -> dict[str, str]:
        """Return what else decides the bytes, for a job's settings: the token ids, and how this CPU multiplies."""
        ids = torch.cat(self._calibration.windows).numpy().astype("<i8").tobytes()
        kernels = "reference" if native_library.library() is None else native_library.isa_name(native_library.isa())
        return {"ids": hashlib.sha256(ids).hexdigest(), "kernels": kernels}

    @property
    def state_size(self) -> int:
        """Bytes of a file that `save` writes."""
        return shard_size({HIDDEN: (torch.float32, (self.tokens, self._config.hidden_size))})

    @property
    def memory(self) -> int:
        """Bytes that the hidden states take, in float32 and normed in bfloat16, and the work on a batch of them."""
        batch = 2048 * 4 * (4 * self._config.intermediate_size + 2 * self._config.hidden_size)
        return self.tokens * self._config.hidden_size * 6 + batch

    def begin(self, embedding: Tensor) -> None:
        """Start at the first layer, with the embedding [V, D]."""
        self._calibration.begin(embedding)

    def save(self, path: Path) -> str:
        """Write the state at the beginning of the next layer; return the file's sha256."""
        hidden = self._calibration.hidden
        with ShardWriter(path, {HIDDEN: (torch.float32, tuple(hidden.shape))}) as writer:
            writer.write(HIDDEN, hidden)
            return writer.finish()

    def restore(self, path: Path, sha256: str) -> bool:
        """Go on from a file that `save` wrote; False where it is gone or damaged."""
        try:
            with path.open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
                    return False
        except FileNotFoundError:
            return False
        except OSError as error:
            raise StorageError(f"{printable(path)} cannot be read: {printable(error)}.") from error
        hidden = MappedShard(path).tensor(HIDDEN)
        if hidden.shape != (self.tokens, self._config.hidden_size):
            return False
        self._calibration.hidden = hidden.clone()
        return True

    def importance(self, block: Sequence[Item], weights: Mapping[str, Tensor | PackedLinear]) -> Importance:
        """Run a block of `blocks`, whose tensors are given by name; return what counts in its Linears, by module.

        Raises:
            ModelFileError: what the model computes is no longer finite.
        """
        found = self._run(block, weights)
        for module, importance in found.items():
            if not bool(importance.isfinite().all()):
                raise ModelFileError(
                    f"the inputs of {module} become NaN or infinite on the calibration text.",
                    hint="The checkpoint may be damaged; without --calibrate it is quantized all the same.",
                )
        return found

    def _run(self, block: Sequence[Item], weights: Mapping[str, Tensor | PackedLinear]) -> Importance:
        dense = {name: w.dequantize() if isinstance(w, PackedLinear) else w for name, w in weights.items()}
        first = block[0].parameter
        by_last = {_last_of(item.parameter): dense[item.parameter.name] for item in block}
        modules = {_last_of(item.parameter): item.parameter.module for item in block}
        run = self._calibration
        if first.role == "expert":
            assert first.layer is not None
            assert first.expert is not None
            d, f = run.expert(first.layer, first.expert, by_last["w1"], by_last["w2"], by_last["w3"])
            return {modules["w1"]: d, modules["w2"]: f, modules["w3"]: d}
        if first.role == "mlp":
            d, f = run.feed_forward(by_last["gate_proj"], by_last["down_proj"], by_last["up_proj"])
            return {modules["gate_proj"]: d, modules["down_proj"]: f, modules["up_proj"]: d}
        if "input_layernorm" in by_last:
            assert first.layer is not None
            found = run.attention(first.layer, by_last)
            return {modules[name]: importance for name, importance in found.items()}
        if "post_attention_layernorm" in by_last:
            run.route(by_last["post_attention_layernorm"], by_last.get("gate"))
        if "norm" in by_last and "lm_head" in by_last:
            return {modules["lm_head"]: run.head(by_last["norm"])}
        return {}

    def few_tokens(self, layer: int) -> dict[str, int]:
        """Return {expert: tokens} of a layer's experts that saw few of the text's tokens."""
        return {
            f"model.layers.{few.layer}.block_sparse_moe.experts.{few.expert}": few.tokens
            for few in self._calibration.few
            if few.layer == layer
        }


def blocks(items: Sequence[Item]) -> Iterator[tuple[Item, ...]]:
    """Cut a shard's items, in their order, into what a calibration must have together."""
    block: list[Item] = []
    for item in items:
        if block and _block_of(item.parameter) != _block_of(block[-1].parameter):
            yield tuple(block)
            block = []
        block.append(item)
    if block:
        yield tuple(block)


def _block_of(parameter: Parameter) -> object:
    if parameter.role == "expert":
        return parameter.expert
    if parameter.role == "mlp":
        return "mlp"
    if parameter.role == "embedding":
        return "embedding"
    if parameter.layer is None:
        return "head"
    return "router" if _last_of(parameter) in ("post_attention_layernorm", "gate") else "attention"


def _last_of(parameter: Parameter) -> str:
    """Return the last name of a module, with `self_attn.` where it is in there."""
    last = parameter.module.rsplit(".", 1)[-1]
    return f"self_attn.{last}" if ".self_attn." in parameter.module else last
