"""`mixq pull`: quantize a checkpoint, from the hub or elsewhere, into the model store; shows the plan first."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mixq.cli import job_options, options, output
from mixq.cli.flag_groups import takes_groups
from mixq.cli.input import confirm
from mixq.cli.job_options import JobFlags
from mixq.cli.quantize import print_plan, run_to_the_end, say_how_it_went
from mixq.config import format_duration, format_size
from mixq.errors import UsageError, printable
from mixq.system import paths
from mixq.system.paths import check_free_space

if TYPE_CHECKING:
    from mixq.formats.store import Entry
    from mixq.quantize.job import Job
    from mixq.quantize.sources.source import Source

FETCH_RATES = ((12.5e6, "100 Mbit/s"), (125e6, "1 Gbit/s"))


@takes_groups()
def pull(
    source: job_options.SourceArgument,
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="AS", help="Name in the store.  [default: SRC's name in lower case, with --format if not nl4]"
        ),
    ] = None,
    *,
    flags: job_options.Flags,
    revision: job_options.Revision = None,
    allow_pickle: job_options.AllowPickle = False,
    yes: options.Yes = False,
    dry_run: job_options.DryRunFlag = False,
    json: options.Json = False,
) -> None:
    """Quantize a checkpoint, usually from the Hugging Face Hub, into the model store.

    Shows sizes and times before anything is written. To resume an interrupted pull, run the same command again, or
    mixq pull NAME with its name in the model store. For gated repositories set HF_TOKEN or run `hf auth login`.
    """
    from mixq.quantize.sources.open import find_source

    errand = _errand(source, name, revision, flags)
    if errand is None:
        output.note(f"{printable(source)} is already in the store; nothing was written.")
        return
    checkpoint = find_source(errand.source, allow_pickle=allow_pickle, revision=errand.revision)
    if errand.entry is not None:
        _refuse_another_source(errand.entry, checkpoint)
    job = errand.flags.job(checkpoint, errand.path)
    if dry_run:
        _show_plan(job, errand, json=json)
        return
    if errand.entry is None or errand.entry.state != "ready":
        _announce(job, errand, yes=yes)
    result = run_to_the_end(job)
    if json:
        output.print_json({"name": errand.path.name, **result.as_dict()})
        return
    say_how_it_went(result)
    typer.echo(f"Done: {printable(errand.path.name)}, {format_size(result.sizes.nbytes)}")
    output.note(f"Try it: mixq chat {printable(errand.path.name)}")


@dataclass(frozen=True, slots=True)
class Errand:
    """The model to write and its source; `entry` is what the store has under that name."""

    source: str
    revision: str | None
    path: Path
    flags: JobFlags
    entry: Entry | None


def _errand(source: str, name: str | None, revision: str | None, flags: JobFlags) -> Errand | None:
    """Return the model that a command line asks for; None if SRC is a finished model in the store."""
    from mixq.formats import store

    if name is None and source in store.names() and not paths.expand(source).exists():
        entry = store.find(source)
        if entry.made_by_mixq and entry.state == "ready":
            return None
        if entry.made_by_mixq and entry.state in ("unfinished", "running"):
            return _go_on(entry, flags)
    path = paths.store() / store.check_name(name or default_name(source, flags.format))
    found = store.look(path) if path.is_dir() or path.is_symlink() else None
    if found is not None and found.state == "unfinished" and found.source.get("name") == source:
        revision = revision or _revision(found)  # the branch may have changed since
    return Errand(source, revision, path, flags, found)


def _go_on(entry: Entry, flags: JobFlags) -> Errand:
    """Return the job that finishes an entry, with the settings of its job.json unless flags were used."""
    if not entry.from_hub:
        made_from = f" from {printable(entry.source['name'])}" if "name" in entry.source else ""
        raise UsageError(
            f"{printable(entry.name)} is an unfinished job{made_from}. Its source is not on the hub, and the path of "
            "the source is not recorded.",
            hint=f"Name the source: mixq pull SRC {printable(entry.name)}",
        )
    if flags == JobFlags():
        flags = job_options.flags_of(entry.settings)
    return Errand(str(entry.source["name"]), _revision(entry), entry.path, flags, entry)


def _revision(entry: Entry) -> str | None:
    return str(entry.source["revision"]) if entry.from_hub else None


def default_name(source: str, format: str) -> str:
    """Return a source's name in the store: its last part in lower case, and the format if not nl4."""
    path = paths.expand(source)
    last = path.resolve().name if path.exists() else source.rsplit("/", 1)[-1]
    stem = re.sub(r"(-\d{5}-of-\d{5})?\.gguf$", "", last.lower())
    return stem if format == "nl4" else f"{stem}-{format}"


def _refuse_another_source(entry: Entry, source: Source) -> None:
    """Refuse a name that another model has, with a better message than `Job`'s."""
    name = printable(entry.name)
    free = f"Choose another name (mixq pull SRC NAME), or remove the model that has it (mixq rm {name})."
    if entry.state == "damaged":
        raise UsageError(f"The name {name} is taken by a damaged folder: {entry.problem}.", hint=free)
    if not entry.made_by_mixq:
        raise UsageError(f"The name {name} is taken by a folder that mixq did not make.", hint=free)
    before, now = entry.source.get("name"), printable(source.name, 400)
    if before is not None and before != now:
        raise UsageError(
            f"The name {name} is taken by a model quantized from {printable(before)}, not from {now}.", hint=free
        )
    if source.revision is not None and entry.source.get("revision") not in (None, source.revision):
        old = printable(entry.source["revision"], 12)
        raise UsageError(
            f"{name} is made from commit {old} of {now}; the hub now has {source.revision[:11]}….", hint=free
        )


def _announce(job: Job, errand: Errand, *, yes: bool) -> None:
    """Show the plan, refuse what does not fit, and ask for confirmation unless the job was started before."""
    _show_plan(job, errand, on_the_side=True)
    check_free_space(job.target, job.dry_run().disk_needed)
    job.check_memory()
    if errand.entry is None and not yes and not confirm("Continue?", default=True):
        output.note("Nothing was written.")
        raise typer.Exit(1)


def _show_plan(job: Job, errand: Errand, *, json: bool = False, on_the_side: bool = False) -> None:
    plan, seconds = job.dry_run(), job.search_seconds()
    left = sum(shard.weights for shard in job.left())
    fetched = round((plan.sizes.source_bytes or 0) * left / plan.sizes.weights) if job.source.path is None else 0
    if json:
        further = {"name": errand.path.name, "search_seconds": seconds, "bytes_to_fetch": fetched}
        output.print_json({**plan.as_dict(), **further})
        return

    console = output.talk() if on_the_side else output.console()
    print_plan(plan, job.target, f"{printable(plan.source)} as {plan.format}: {printable(errand.path.name)}", console)
    if fetched:
        rates = ", ".join(f"{format_duration(fetched / rate)} at {name}" for rate, name in FETCH_RATES)
        console.print(f"to download:     {format_size(fetched)}, not stored", soft_wrap=True)
        console.print(f"                 {rates}", soft_wrap=True)
    console.print(f"to compute:      at least {format_duration(seconds)}", soft_wrap=True)
