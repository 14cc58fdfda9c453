"""`--calibrate` in a job: its text, the tensors that it needs together, and the state that a resumed job needs.

Contract: a job reads a shard block by block (`blocks`) and gives each block's tensors to `importance` before it writes
them. The hidden states at the start of a layer are saved before the shard of the previous layer is finished, so that
an interrupted job resumes there and writes the same bytes.
"""

from __future__ import annotations

import codecs
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mixq.config import ModelConfig
from mixq.errors import ModelFileError, UsageError, printable
from mixq.formats.architecture import Parameter
from mixq.formats.mapped import MappedShard
from mixq.formats.packed import PackedLinear
from mixq.formats.shard_writer import ShardWriter, shard_size
from mixq.kernels import dispatch, native_library
from mixq.quantize.calibrate import BATCH, Calibration, Importance, windows_of
from mixq.quantize.layout import Item
from mixq.quantize.sources.place import reading
from mixq.text.tokenizer import Tokenizer

DEFAULT = "default"
TOKENS = 16384
WINDOW = 512
MAX_TEXT = 4 << 20
HIDDEN = "hidden"


@dataclass(frozen=True, slots=True)
class CalibrationText:
    """A text to calibrate on."""

    name: str  # the file's name, or `default` for the text that comes with mixq
    text: str
    tokens: int = TOKENS  # how many of its tokens to use, in windows at even distances

    @classmethod
    def read(cls, where: str, tokens: int = TOKENS) -> CalibrationText:
        """Read a file of UTF-8 text, or the text that comes with mixq for `default`.

        Raises:
            UsageError: no such file, not text, or a number of tokens out of range.
        """
        if not WINDOW <= tokens <= 1 << 20:
            raise UsageError(f"--calibrate-tokens is {tokens}; it must be {WINDOW} to {1 << 20}.")
        if where == DEFAULT:
            return cls(DEFAULT, (resources.files("mixq.quantize") / "calibration.txt").read_text("utf-8"), tokens)
        path = Path(where)
        try:
            with path.open("rb") as file:
                # The last character may be cut off.
                content = file.read(MAX_TEXT)
                text = codecs.getincrementaldecoder("utf-8")().decode(content, len(content) < MAX_TEXT)
        except UnicodeDecodeError:
            raise UsageError(f"{printable(where)} is not UTF-8 text.") from None
        except OSError as error:
            raise UsageError(
                f"{printable(where)} cannot be read: {printable(error.strerror)}.",
                hint="Name a text file, or use `--calibrate default` for the text that comes with mixq.",
            ) from None
        return cls(printable(path.name), text, tokens)

    def as_dict(self) -> dict[str, Any]:
        """Return the settings that determine a job's bytes."""
        return {"text": self.name, "sha256": hashlib.sha256(self.text.encode()).hexdigest(), "tokens": self.tokens}

    def windows(self, tokenizer: Tokenizer) -> list[Tensor]:
        """Return the text's ids, cut into windows; raises UsageError for fewer tokens than one window."""
        ids = tokenizer.encode(self.text)
        windows = windows_of(ids, tokenizer.bos_id, WINDOW, self.tokens)
        if sum(map(len, windows)) < WINDOW:
            raise UsageError(
                f"{printable(self.name)} has only {len(ids)} of the {WINDOW} tokens that calibrating needs.",
                hint="Use a longer text, like those that the model will process.",
            )
        return windows


class CalibrationRun(Calibration):
    """The calibration of one job."""

    def __init__(self, config: ModelConfig, windows: Sequence[Tensor]) -> None:
        super().__init__(config, windows, lambda: dispatch.choose(threads=torch.get_num_threads()))

    def as_dict(self) -> dict[str, str]:
        """Return the other settings that determine the bytes: the token ids, and the kernels of this CPU."""
        ids = torch.cat(self.windows).numpy().astype("<i8").tobytes()
        kernels = "reference" if native_library.library() is None else native_library.isa_name(native_library.isa())
        return {"ids": hashlib.sha256(ids).hexdigest(), "kernels": kernels}

    @property
    def state_size(self) -> int:
        """Bytes of a file that `save` writes."""
        return shard_size({HIDDEN: (torch.float32, (self.tokens, self.config.hidden_size))})

    @property
    def memory(self) -> int:
        """Bytes that the hidden states take, in float32 and normed in bfloat16, and the work on a batch of them."""
        batch = BATCH * 4 * (4 * self.config.intermediate_size + 2 * self.config.hidden_size)
        return self.tokens * self.config.hidden_size * 6 + batch

    def save(self, path: Path) -> str:
        """Write the state at the start of the next layer; return the file's sha256."""
        with ShardWriter(path, {HIDDEN: (torch.float32, tuple(self.hidden.shape))}) as writer:
            writer.write(HIDDEN, self.hidden)
            return writer.finish()

    def restore(self, path: Path, sha256: str) -> bool:
        """Read the state from a file that `save` wrote; return False if it is missing or damaged."""
        if not path.exists():
            return False
        with reading(path), path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
                return False
        hidden = MappedShard(path).tensor(HIDDEN)
        if hidden.shape != (self.tokens, self.config.hidden_size):
            return False
        self.hidden = hidden.clone()
        return True

    def importance(self, block: Sequence[Item], weights: Mapping[str, Tensor | PackedLinear]) -> Importance:
        """Run a block of `blocks`, whose tensors are given by name; return the importance of its linear layers, by
        module.

        Raises:
            ModelFileError: the model computes NaN or infinite values.
        """
        found = self._run(block, weights)
        for module, importance in found.items():
            if not bool(importance.isfinite().all()):
                raise ModelFileError(
                    f"the inputs of {module} become NaN or infinite on the calibration text.",
                    hint="The checkpoint may be damaged. It can be quantized without --calibrate.",
                )
        return found

    def _run(self, block: Sequence[Item], weights: Mapping[str, Tensor | PackedLinear]) -> Importance:
        dense = {name: w.dequantize() if isinstance(w, PackedLinear) else w for name, w in weights.items()}
        first = block[0].parameter
        by_last = {_last_of(item.parameter): dense[item.parameter.name] for item in block}
        modules = {_last_of(item.parameter): item.parameter.module for item in block}
        if first.role in ("expert", "mlp"):
            assert first.layer is not None
            names = ("w1", "w2", "w3") if first.role == "expert" else ("gate_proj", "down_proj", "up_proj")
            d, f = self.feed_forward(first.layer, first.expert, *(by_last[name] for name in names))
            return dict(zip((modules[name] for name in names), (d, f, d), strict=True))
        if "input_layernorm" in by_last:
            assert first.layer is not None
            found = self.attention(first.layer, by_last)
            return {modules[name]: importance for name, importance in found.items()}
        if "post_attention_layernorm" in by_last:
            self.route(by_last["post_attention_layernorm"], by_last.get("gate"))
        if "norm" in by_last and "lm_head" in by_last:
            return {modules["lm_head"]: self.head(by_last["norm"])}
        return {}

    def few_tokens(self, layer: int) -> dict[str, int]:
        """Return {expert: tokens} of a layer's experts that received few of the text's tokens."""
        few = {expert: tokens for (of_layer, expert), tokens in self.few.items() if of_layer == layer}
        return {f"model.layers.{layer}.block_sparse_moe.experts.{expert}": tokens for expert, tokens in few.items()}


def blocks(items: Sequence[Item]) -> Iterator[tuple[Item, ...]]:
    """Split a shard's items, in their order, into the blocks that a calibration needs together."""
    return (tuple(block) for _, block in groupby(items, lambda item: _block_of(item.parameter)))


def _block_of(parameter: Parameter) -> object:
    if parameter.role in ("expert", "mlp", "embedding"):
        return parameter.role, parameter.expert
    if parameter.layer is None:
        return "head"
    return "router" if _last_of(parameter) in ("post_attention_layernorm", "gate") else "attention"


def _last_of(parameter: Parameter) -> str:
    """Return the last name of a module, with `self_attn.` before those of attention."""
    last = parameter.module.rsplit(".", 1)[-1]
    return f"self_attn.{last}" if ".self_attn." in parameter.module else last
