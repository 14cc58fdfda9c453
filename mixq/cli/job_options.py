"""The flags of `mixq quantize` and `mixq pull`, and the job that they describe.

Contract: `Job` checks the values; this module only reads the files that flags name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mixq.cli import options, output
from mixq.cli.flag_groups import Group
from mixq.config import format_size
from mixq.errors import UsageError, printable

if TYPE_CHECKING:
    from mixq.quantize.job import Job
    from mixq.quantize.sources.source import Source

SourceArgument = Annotated[
    str,
    typer.Argument(
        metavar="SRC",
        help="A folder (Hugging Face's or Mistral's format, GPTQ, AWQ, bitsandbytes, compressed-tensors), a GGUF "
        "file, a name in the model store, or a repository on the Hugging Face Hub (owner/name); only the quantized "
        "model is stored.",
        autocompletion=options.complete_model,
    ),
]
Revision = Annotated[str | None, options.option("--revision", "Branch, tag or commit of a repository.", "REV")]
AllowPickle = Annotated[
    bool, options.option("--allow-pickle", "Read .bin, .pt and .pth files, with torch's restricted unpickler.")
]
DryRunFlag = Annotated[bool, options.option("--dry-run", "Show sizes, disk and memory; write nothing.")]

CALIBRATE_TOKENS = 16384


@dataclass(frozen=True, slots=True)
class JobFlags:
    """The flags that describe the folder to write."""

    format: Annotated[
        str,
        options.option(
            "--format",
            "nl4: mixq's 4-bit format, smallest error. w4, w8: 4-bit and 8-bit integers, also for transformers and "
            "vLLM. nf4: bitsandbytes' format.",
            "nl4|w4|w8|nf4",
        ),
    ] = "nl4"
    group: Annotated[
        int | None,
        options.option(
            "--group",
            "Number of neighbouring weights that share a scale, such as 32.  [default: depends on the format]",
            "N",
        ),
    ] = None
    mix: Annotated[
        str | None,
        options.option(
            "--mix",
            "Format of each part, as NAME=FORMAT[:GROUP], such as experts=nl4:32,o=w8,lm_head=bf16; or all-nl4: "
            "nl4 for every part. Names: experts, attention, q, k, v, o, lm_head.",
            "MIX",
        ),
    ] = None
    recipe: Annotated[
        Path | None,
        options.option(
            "--recipe",
            "TOML file that sets the format of layers by patterns of their names; overrides --mix.",
            "FILE",
        ),
    ] = None
    calibrate: Annotated[
        str | None,
        options.option(
            "--calibrate",
            "First run the model on a text file, or with the word default on the text that comes with mixq; then "
            "keep the error small for the inputs with large activations.",
            "TEXT|default",
        ),
    ] = None
    calibrate_tokens: Annotated[
        int, options.option("--calibrate-tokens", "Number of tokens of the text to use.", "N")
    ] = CALIBRATE_TOKENS
    table: Annotated[
        str,
        options.option(
            "--table",
            "The 16 values of nl4's codes. default: built in; fit: chosen for the weights of this model.",
            "default|fit",
        ),
    ] = "default"
    keep: Annotated[
        bool, options.option("--keep", "Copy int4 and int8 groups of SRC unchanged: Q4_0, Q8_0, GPTQ, ...")
    ] = False
    allow_nonfinite: Annotated[
        bool, options.option("--allow-nonfinite", "Store NaN and infinite weights as 0 instead of refusing them.")
    ] = False

    def job(self, source: Source, target: Path) -> Job:
        """Return the job, checked; raises what `Job` and the readers of the named files raise."""
        from mixq.quantize.calibration_run import CalibrationText
        from mixq.quantize.job import Job
        from mixq.quantize.recipe import read_recipe

        text = None if self.calibrate is None else CalibrationText.read(self.calibrate, self.calibrate_tokens)
        return Job(
            source,
            target,
            format=self.format,
            group=self.group,
            mix=self.mix,
            table=self.table,
            recipe=None if self.recipe is None else read_recipe(self.recipe),
            keep=self.keep,
            calibrate=text,
            allow_nonfinite=self.allow_nonfinite,
        )


Flags = Annotated[JobFlags, Group(JobFlags)]


def flags_of(settings: Mapping[str, Any]) -> JobFlags:
    """Return the flags that lead to the settings of a job.json.

    Raises:
        UsageError: the job used a file whose path is not recorded.
    """
    mix = {kind: scheme for kind, scheme in settings["mix"].items() if kind != "recipe"}
    calibrate = settings["calibrate"]
    named = [flag for flag, used in (("--recipe", "recipe" in settings["mix"]), ("--calibrate", calibrate)) if used]
    if calibrate and calibrate.get("text") == "default":
        named.remove("--calibrate")
    if named:
        raise UsageError(
            f"The job was started with {' and '.join(named)}; the paths of those files are not recorded.",
            hint="Run the command that started it.",
        )
    matrices = [scheme for kind, scheme in mix.items() if kind.startswith("w") or kind.endswith("_proj")]
    # If group sizes differ, the largest was requested, and it does not divide the rows of the other layers.
    experts = max(matrices, key=lambda scheme: int(scheme.partition(":")[2] or 0))
    parts = {"experts": experts} | {part: mix[part] for part in ("q", "k", "v", "o", "lm_head") if part in mix}
    return JobFlags(
        format=settings["format"],
        mix=",".join(f"{part}={scheme}" for part, scheme in parts.items()),
        calibrate="default" if calibrate else None,
        calibrate_tokens=calibrate["tokens"] if calibrate else CALIBRATE_TOKENS,
        table="fit" if settings["table"] == "fit" else "default",
        keep=settings["keep"],
        allow_nonfinite=settings["allow_nonfinite"],
    )


def say_what_is_fetched(source: Source) -> None:
    """Print how many bytes are read from the hub, if the source is there."""
    if source.path is None:
        size = format_size(source.nbytes)
        output.note(f"{printable(source.name)}: {size} are read from the hub; only the quantized model is stored.")
