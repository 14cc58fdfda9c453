"""`mixq show`: the content of a model folder, without running it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mixq.cli import options, output
from mixq.cli.tables import fact_grid, size_table
from mixq.config import format_size
from mixq.errors import printable
from mixq.system import paths

if TYPE_CHECKING:
    from mixq.formats.folder import ModelFolder
    from mixq.quantize.report import SizeTable


def show(folder: options.FolderArgument, json: options.Json = False) -> None:
    """Show a model folder: shape, schemes, sizes and source.

    Only headers and configs are read; `mixq verify` reads every byte.
    """
    from mixq.formats.folder import ModelFolder
    from mixq.quantize.report import sizes_of_folder

    opened = ModelFolder.open(paths.resolve_model(folder))
    sizes = sizes_of_folder(opened)
    facts = describe(opened)
    if json:
        output.print_json({**facts, "sizes": sizes.as_dict()})
    else:
        _print(facts, sizes)


def describe(folder: ModelFolder) -> dict[str, Any]:
    """Return the folder's description as plain data."""
    from mixq.formats.manifest import FILE_NAME, Manifest

    config = folder.config
    manifest = Manifest.read(folder.path) if (folder.path / FILE_NAME).is_file() else None
    return {
        "path": str(folder.path),
        "architecture": config.architecture,
        "layers": config.num_hidden_layers,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "attention_heads": config.num_attention_heads,
        "key_value_heads": config.num_key_value_heads,
        "head_dim": config.head_dim,
        "experts": config.num_local_experts,
        "experts_per_token": config.num_experts_per_tok,
        "vocabulary": config.vocab_size,
        "max_context": config.max_position_embeddings,
        "quantization": None if folder.quantization is None else folder.quantization.method,
        "shards": len(folder.mapped),
        "tokenizer": None if folder.tokenizer_path is None else folder.tokenizer_path.name,
        "source": None if manifest is None else dict(manifest.source),
        "settings": None if manifest is None else dict(manifest.settings),
    }


def _print(facts: Mapping[str, Any], sizes: SizeTable) -> None:
    console = output.console()
    kind = f"{facts['experts']} experts, {facts['experts_per_token']} per token" if facts["experts"] else "dense"
    heads = f"{facts['attention_heads']} heads, {facts['key_value_heads']} kv heads of {facts['head_dim']}"
    console.print(printable(facts["path"]), style="bold", soft_wrap=True)
    lines = (
        ("model", f"{facts['architecture']}, {facts['layers']} layers, {kind}"),
        ("shape", f"hidden {facts['hidden_size']}, ffn {facts['intermediate_size']}, {heads}"),
        ("text", f"vocabulary {facts['vocabulary']}, {facts['tokenizer'] or 'no tokenizer'}"),
        ("context", f"at most {facts['max_context']} tokens"),
        ("files", f"{facts['shards']} shards, {format_size(sizes.nbytes)}"),
        ("a token reads", format_size(sizes.token_bytes)),
        ("method", facts["quantization"] or "not quantized"),
        *_provenance(facts),
    )
    console.print(fact_grid((label, printable(value, 400)) for label, value in lines))
    console.print()
    console.print(size_table(sizes))


def _provenance(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the main facts about source and settings in mixq.json; --json has all of them."""
    source, settings = facts["source"] or {}, facts["settings"] or {}
    lines = []
    if "name" in source:
        size = source.get("nbytes")
        details = [str(source.get("dtype", "")), format_size(size) if isinstance(size, int) else ""]
        lines.append(("made from", ", ".join([str(source["name"]), *filter(None, details)])))
    if "revision" in source:
        lines.append(("revision", str(source["revision"])))
    if "fingerprint" in source:
        lines.append(("fingerprint", str(source["fingerprint"])[:16]))
    if isinstance(settings.get("mix"), Mapping):
        lines.append(("mix", ", ".join(f"{part}={scheme}" for part, scheme in settings["mix"].items())))
    if settings.get("table") == "fit":
        lines.append(("table", "fitted to the weights"))
    if isinstance(settings.get("calibrate"), Mapping):
        lines.append(
            ("calibrated", f"{settings['calibrate'].get('tokens')} tokens of {settings['calibrate'].get('text')}")
        )
    if settings.get("keep"):
        lines.append(("kept", "the int4 and int8 groups of the source"))
    if settings.get("allow_nonfinite"):
        lines.append(("non-finite", "NaN and infinite weights were stored as 0"))
    return lines
