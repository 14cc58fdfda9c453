"""`mixq verify`: check that a folder is unchanged since `mixq quantize` wrote it."""

from __future__ import annotations

import typer

from mixq.cli import options, output
from mixq.cli.progress import byte_progress
from mixq.config import format_size
from mixq.errors import ModelFileError, printable
from mixq.system import paths


def verify(folder: options.FolderArgument, json: options.Json = False) -> None:
    """Check every byte of a model folder: the sha256 of each file and the folder's structure.

    The exit code is 3 if something is wrong.
    """
    from mixq.quantize.verify import verify as check

    with byte_progress("verifying") as update:
        report = check(paths.resolve_model(folder), on_progress=lambda _, done, total: update(done, total))
    if json:
        output.print_json(report.as_dict())
    elif report.ok:
        typer.echo(f"{printable(report.path)}: {report.files} files, {format_size(report.nbytes)}, all as written.")
    else:
        for problem in report.problems:
            typer.echo(f"{problem.file}: {problem.text}")
    if not report.ok:
        count = len(report.problems)
        problem_word = "problem" if count == 1 else "problems"
        output.print_error(
            ModelFileError(
                f"{printable(report.path)} has {count} {problem_word}.",
                hint="Quantize it again into an empty folder, or copy the damaged files again.",
            )
        )
        raise typer.Exit(ModelFileError.exit_code)
