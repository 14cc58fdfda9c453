"""Recordings of real generations, `.mqt`: which experts the routers chose, with which weights, and how long it took.

Contract: a recording is plain numbers. Its file is an .npz, numpy's zip of .npy arrays, compressed, so that numpy alone
reads it: `np.load("run.mqt", allow_pickle=False)` gives these arrays by name (T tokens, H layers looked ahead, L
layers, A active experts):

    header     uint8   [bytes]       UTF-8 JSON, see below
    experts    uint8   [T, L, A]     the router's choice, the most likely first
    weights    float16 [T, L, A]     the router's normalized weights, in the same order
    predicted  uint8   [T, H, L, A]  [t, h, l]: what the router of layer l chose when it was given the hidden state of
                                     layer l - 1 - h, h + 1 layers too early; 255: no prediction
    tokens     int32   [T]           ids of the tokens that were fed, of prompts and of replies, in the order run
    prompt     int32   [T]           which prompt they belong to, from 0
    is_prompt  bool    [T]           True for tokens of a prompt, which are run many at a time
    seconds    float32 [T]           wall time of the pass that ran a token, divided by the tokens of that pass

The header is an object: `format` "mixq-trace", `version` 2, `model` (a name), `layers`, `experts`, `active`,
`lookahead` (H), `device` (cpu, sim or cuda), `mixq` (the program's version), `created` (ISO 8601), `prompts` (a list of
`name`, `prompt_tokens`, `tokens`: recorded ones of the prompt and of the reply), the model's sizes as in
`mixq.experts.cost.ModelCost` (`expert_bytes`, `trunk_bytes`, `head_bytes`, `kv_bytes`, `expert_flops`; null where they
are not known) and `settings`, how it was run. Other keys are ignored; other versions are refused.

Files are untrusted: `mixq.formats.npz` limits the zip, and every number is checked here. No torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mixq.errors import Fields, ModelFileError, UsageError, printable
from mixq.experts.cost import ModelCost
from mixq.experts.routing import Trace
from mixq.formats.atomic import atomic_write_bytes
from mixq.formats.json_file import parse_json_object
from mixq.formats.npz import packed, read_arrays

FORMAT = "mixq-trace"
VERSION = 2
NOTHING = 255
"""In `predicted`: no prediction. So a layer has at most 255 experts."""

MOST_BYTES = 1 << 30
"""Most bytes of a file, and of its arrays: three million tokens of Mixtral."""

MOST_LAYERS = 1024
LARGEST = 2**45
"""Most bytes or operations of a part of a model: no model has more, and a replay of more would take hours."""

SIZES = ("expert_bytes", "trunk_bytes", "head_bytes", "kv_bytes", "expert_flops")
KINDS = {
    "header": ("|u1", 1),
    "experts": ("|u1", 3),
    "weights": ("<f2", 3),
    "predicted": ("|u1", 4),
    "tokens": ("<i4", 1),
    "prompt": ("<i4", 1),
    "is_prompt": ("|b1", 1),
    "seconds": ("<f4", 1),
}
"""Type and number of axes of each array."""


@dataclass(frozen=True, slots=True)
class PromptFacts:
    """One prompt: its name, and how many tokens of it and of its reply were recorded."""

    name: str
    prompt_tokens: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Facts:
    """The facts of a recording."""

    model: str  # a name
    # layers, experts, active: of the model
    layers: int
    experts: int
    active: int
    lookahead: int = 0  # number of layers ahead for which there are predictions
    device: str = "cpu"  # cpu, sim or cuda
    mixq: str = ""  # version of the program
    created: str = ""  # ISO 8601
    prompts: tuple[PromptFacts, ...] = ()  # in the order of `Recording.prompt`
    # expert_bytes, trunk_bytes, head_bytes, kv_bytes, expert_flops: see `ModelCost`; None where they are not known
    expert_bytes: int | None = None
    trunk_bytes: int | None = None
    head_bytes: int | None = None
    kv_bytes: int | None = None
    expert_flops: int | None = None
    # of the run (threads, kernels, slots, policy and so on), for information
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def cost(self) -> ModelCost | None:
        """The model's sizes; None if the recording does not have them all."""
        sizes = {name: getattr(self, name) for name in SIZES}
        if None in sizes.values():
            return None
        return ModelCost(layers=self.layers, experts=self.experts, active=self.active, **sizes)


@dataclass(frozen=True, slots=True, eq=False)
class Recording:
    """Arrays as in the module's docstring, and what is known about them."""

    facts: Facts
    experts: NDArray[np.uint8]
    weights: NDArray[np.float16]
    predicted: NDArray[np.uint8]
    tokens: NDArray[np.int32]
    prompt: NDArray[np.int32]
    is_prompt: NDArray[np.bool_]
    seconds: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.tokens)

    @classmethod
    def read(cls, path: Path) -> Recording:
        """Read a file.

        Raises:
            ModelFileError: not a recording, another version, too large, or a value in it is not allowed.
            StorageError: it cannot be read.
        """
        arrays = read_arrays(path, KINDS, MOST_BYTES)
        header = parse_json_object(arrays.pop("header").tobytes(), f"{printable(path)}, its header")
        try:
            recording = cls(_facts(Fields(header, f"{printable(path)}, its header: ")), **arrays)
            _check(recording)
        except _Bad as error:
            raise ModelFileError(f"{printable(path)} cannot be used as a recording: {error}.") from error
        return recording

    def write(self, path: Path) -> None:
        """Write the file, atomically.

        Raises:
            UsageError: `read` would refuse the numbers.
            StorageError: it cannot be written.
        """
        try:
            _check(self)
        except _Bad as error:
            raise UsageError(f"The recording cannot be written: {error}.") from error
        header = {"format": FORMAT, "version": VERSION, **asdict(self.facts)}
        text = json.dumps(header, ensure_ascii=False, allow_nan=False).encode()
        arrays = {name: getattr(self, name) for name in KINDS if name != "header"}
        atomic_write_bytes(path, packed({"header": np.frombuffer(text, dtype=np.uint8), **arrays}, KINDS))

    def routing(self) -> Trace:
        """Return the choices of the replies, which are decoded token by token; of the prompts if there is no reply."""
        chosen = self.experts if self.is_prompt.all() else self.experts[~self.is_prompt]
        tokens = [[tuple(layer) for layer in token] for token in chosen.tolist()]
        return Trace(self.facts.layers, self.facts.experts, self.facts.active, tokens)


def read_routing(path: Path) -> Trace:
    """Return the routing of a recording's file; errors as in `Recording.read`."""
    return Recording.read(path).routing()


def count_prompts(
    names: Sequence[str], prompt: NDArray[np.int32], is_prompt: NDArray[np.bool_]
) -> tuple[PromptFacts, ...]:
    """Return the prompts, with the numbers of tokens in the arrays."""
    of_prompts = np.bincount(prompt[is_prompt], minlength=len(names)).tolist()
    of_replies = np.bincount(prompt[~is_prompt], minlength=len(names)).tolist()
    return tuple(PromptFacts(*row) for row in zip(names, of_prompts, of_replies, strict=True))


class _Bad(Exception):
    """What is wrong with a recording, for a message."""


def _facts(header: Fields) -> Facts:
    header.one_of("format", [FORMAT])
    header.one_of("version", [VERSION])
    prompts = header.values.get("prompts")
    if not isinstance(prompts, list) or not all(isinstance(entry, dict) for entry in prompts):
        raise header.wrong("prompts", "a list of objects")
    entries = [Fields(entry, f"{header.where}prompts.") for entry in prompts]
    known = [name for name in SIZES if header.values.get(name) is not None]
    return Facts(
        model=header.text("model"),
        layers=header.integer("layers", 1, MOST_LAYERS),
        experts=header.integer("experts", 1, NOTHING),
        active=header.integer("active", 1, NOTHING),
        lookahead=header.integer("lookahead", 0, MOST_LAYERS),
        device=header.text("device"),
        mixq=header.text("mixq"),
        created=header.text("created"),
        prompts=tuple(
            PromptFacts(entry.text("name"), entry.integer("prompt_tokens", 0, 2**31), entry.integer("tokens", 0, 2**31))
            for entry in entries
        ),
        settings=header.object("settings", default={}).values,
        **{name: header.integer(name, 1, LARGEST) for name in known},
    )


def _check(recording: Recording) -> None:
    """Refuse arrays that do not agree with each other or with the facts."""
    facts, T = recording.facts, len(recording.tokens)
    L, A, H = facts.layers, facts.active, facts.lookahead
    if not T:
        raise _Bad("it has no tokens")
    if facts.experts < A or facts.experts > NOTHING or L > MOST_LAYERS:
        raise _Bad(f"{L} layers of {facts.experts} experts, {A} of them used, are not possible")
    shapes: dict[str, tuple[int, ...]] = dict.fromkeys(("tokens", "prompt", "is_prompt", "seconds"), (T,))
    shapes |= {"experts": (T, L, A), "weights": (T, L, A), "predicted": (T, H, L, A)}
    for name, shape in shapes.items():
        if getattr(recording, name).shape != shape:
            raise _Bad(f"{name} has shape {getattr(recording, name).shape}; with the others it would be {shape}")
    if not _different(recording.experts, facts.experts):
        raise _Bad(f"experts are not {A} different numbers from 0 to {facts.experts - 1} everywhere")
    predictions = recording.predicted[(recording.predicted != NOTHING).any(axis=-1)]  # [?, A]
    if not _different(predictions, facts.experts):
        raise _Bad(f"predicted are not {A} different numbers from 0 to {facts.experts - 1} where there is a prediction")
    for name in ("weights", "seconds"):
        numbers = getattr(recording, name)
        if not (np.isfinite(numbers) & (numbers >= 0)).all():
            raise _Bad(f"{name} has a number that is negative or not finite")
    if (recording.tokens < 0).any():
        raise _Bad("tokens has a negative id")
    P = len(facts.prompts)
    if (recording.prompt < 0).any() or (recording.prompt >= P).any():
        raise _Bad(f"prompt has a number that is none of its {P} prompts")
    if count_prompts([prompt.name for prompt in facts.prompts], recording.prompt, recording.is_prompt) != facts.prompts:
        raise _Bad("the prompts have other numbers of tokens than the header says")


def _different(experts: NDArray[np.uint8], count: int) -> bool:
    """Return whether the numbers along the last axis are different and below `count`."""
    ordered = np.sort(experts, axis=-1)
    return bool((experts < count).all() and (ordered[..., 1:] != ordered[..., :-1]).all())
