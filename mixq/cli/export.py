"""`mixq export`: a model folder or checkpoint in another program's format."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mixq.cli import options, output
from mixq.cli.progress import weight_progress
from mixq.cli.tables import size_table
from mixq.config import format_size
from mixq.errors import UsageError, printable
from mixq.system import paths

if TYPE_CHECKING:
    from mixq.quantize.events import Result
    from mixq.quantize.export.gguf_file import GgufResult

FORMS = ("gguf", "compressed-tensors", "bf16")


def export(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SRC",
            help="A model folder, a checkpoint, or a name in the model store.",
            autocompletion=options.complete_model,
        ),
    ],
    target: Annotated[Path, typer.Argument(metavar="DST", help="The file (gguf) or folder to write.")],
    to: Annotated[
        str,
        options.option(
            "--to",
            "gguf: one file for llama.cpp. compressed-tensors: a folder for vLLM, SGLang and transformers. "
            "bf16: an unquantized folder.",
            "|".join(FORMS),
        ),
    ],
    type: Annotated[
        str,
        options.option(
            "--type",
            "For gguf: the type of the matrices. auto: for each matrix the type closest to its precision, without "
            "requantizing w4 and w8.",
            "auto|bf16|f16|q8_0|q4_0",
        ),
    ] = "auto",
    format: Annotated[
        str,
        options.option(
            "--format", "For compressed-tensors: the format of matrices that are neither w4 nor w8.", "w4|w8"
        ),
    ] = "w4",
    json: options.Json = False,
) -> None:
    """Turn a model folder into a GGUF file, or into a folder for other engines.

    One matrix is in memory at a time. To resume an interrupted export to a folder, run the same command again; a GGUF
    file starts over.
    """
    from mixq.quantize.sources.open import open_source

    options.one_of("--to", to, FORMS)
    for flag, given, default, owner in (
        ("--type", type, "auto", "gguf"),
        ("--format", format, "w4", "compressed-tensors"),
    ):
        if given != default and to != owner:
            raise UsageError(f"{flag} applies to --to {owner} only, not to --to {to}.")
    path = paths.expand(source)
    opened = open_source(path if path.suffix == ".gguf" else paths.resolve_model(source), mixq_folders=True)
    result: GgufResult | Result
    if to == "gguf":
        from mixq.quantize.export.gguf_file import GgufExport

        job = GgufExport(opened, target, type)
        with weight_progress("exporting") as update:
            result = job.run(update)
        for notice in result.notices:
            output.warn(notice)
    else:
        from mixq.cli.quantize import run_to_the_end
        from mixq.quantize.export.folders import compressed_tensors_job
        from mixq.quantize.job import Job

        unquantized = to == "bf16"
        folder_job = (
            Job(opened, target, format="bf16") if unquantized else compressed_tensors_job(opened, target, format)
        )
        result = run_to_the_end(folder_job)
    if json:
        output.print_json(result.as_dict())
    else:
        _print_result(result)


def _print_result(result: GgufResult | Result) -> None:
    from mixq.quantize.export.gguf_file import GgufResult

    if isinstance(result, GgufResult):
        types = ", ".join(f"{format_size(size)} {type}" for type, size in result.types.items())
        typer.echo(f"{printable(result.path)}: {format_size(result.nbytes)} ({types})")
        return

    if result.already_done:
        output.note("The folder is already complete; nothing was written.")
    console = output.console()
    console.print(size_table(result.sizes))
    console.print(f"Done: {printable(result.path)}", style="bold", soft_wrap=True)
