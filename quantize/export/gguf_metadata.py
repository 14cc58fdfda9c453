"""The metadata of a GGUF file: shape, tokenizer and chat template, as llama.cpp's converter writes them for a Llama.

Contract: `add_metadata` fills a `gguf.GGUFWriter` from a source's config and side files. Keys as in llama.cpp's
convert_hf_to_gguf (LlamaModel). The tokenizer is sentencepiece's tokenizer.model; without one the file has no
vocabulary, and programs can use it only with token ids.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mixq.config import ModelConfig
from mixq.errors import ModelFileError
from mixq.formats.json_file import parse_json_object

if TYPE_CHECKING:
    import gguf

    from mixq.quantize.sources.source import Source

ADDED_SCORE = -1000.0
"""The score of tokens that are not in tokenizer.model, as in the converter."""


def add_metadata(writer: gguf.GGUFWriter, source: Source, file_type: int) -> tuple[str, ...]:
    """Add everything but the tensors, and return notices for the user, one sentence each.

    Raises:
        ModelFileError: the tokenizer is damaged, or has more tokens than the model.
    """
    import gguf

    files = source.side_files()
    writer.add_type("model")
    writer.add_name(source.name)
    writer.add_file_type(file_type)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    _add_shape(writer, source.config)
    notes = []
    if source.config.sliding_window is not None:
        notes.append(f"llama.cpp ignores sliding_window ({source.config.sliding_window}) and attends to all positions.")
    if "tokenizer.model" not in files:
        writer.add_tokenizer_model("no_vocab")
        return (*notes, "the source has no tokenizer.model, so the file has no vocabulary and accepts only token ids.")
    _add_tokenizer(writer, source.config, files)
    return tuple(notes)


def _add_shape(writer: gguf.GGUFWriter, config: ModelConfig) -> None:
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    if config.is_moe:
        writer.add_expert_count(config.num_local_experts)
        writer.add_expert_used_count(config.num_experts_per_tok)
    writer.add_vocab_size(config.vocab_size)


def _add_tokenizer(writer: gguf.GGUFWriter, config: ModelConfig, files: Mapping[str, bytes]) -> None:
    """Add the tokens of tokenizer.model and those of JSON files, padded to the model's vocabulary.

    Raises:
        ModelFileError: tokenizer.model is damaged, or has more tokens than the model.
    """
    import sentencepiece
    from gguf import TokenType

    try:
        pieces = sentencepiece.SentencePieceProcessor(model_proto=files["tokenizer.model"])
    except RuntimeError as error:
        raise ModelFileError(
            "tokenizer.model is not a sentencepiece model.",
            hint="Copy tokenizer.model from the original checkpoint into the folder, or export without it.",
        ) from error
    count = pieces.vocab_size()
    if count > config.vocab_size:
        raise ModelFileError(f"tokenizer.model has {count} tokens, but the model only {config.vocab_size}.")
    ids = list(range(count))
    kinds = (
        (pieces.is_unknown(ids), TokenType.UNKNOWN),
        (pieces.is_control(ids), TokenType.CONTROL),
        (pieces.is_unused(ids), TokenType.UNUSED),
        (pieces.is_byte(ids), TokenType.BYTE),
    )
    tokens = [piece.encode() for piece in pieces.id_to_piece(ids)]
    types = [next((kind for marks, kind in kinds if marks[i]), TokenType.NORMAL) for i in ids]
    added = _added_tokens(files)
    for i in range(count, config.vocab_size):
        text, special = added.get(i, (f"[PAD{i}]", None))
        tokens.append(text.encode())
        types.append(TokenType.UNUSED if special is None else TokenType.CONTROL if special else TokenType.USER_DEFINED)
    settings = _json(files, "tokenizer_config.json")
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_scores([*pieces.get_score(ids), *[ADDED_SCORE] * (config.vocab_size - count)])
    writer.add_token_types([int(kind) for kind in types])
    writer.add_bos_token_id(config.bos_token_id)
    writer.add_eos_token_id(config.eos_token_ids[0])
    if pieces.unk_id() >= 0:
        writer.add_unk_token_id(pieces.unk_id())
    writer.add_add_bos_token(settings.get("add_bos_token") is not False)
    writer.add_add_eos_token(settings.get("add_eos_token") is True)
    if not pieces.id_to_piece(pieces.encode("a")[0]).startswith("\N{LOWER ONE EIGHTH BLOCK}"):
        writer.add_add_space_prefix(False)
    template = settings.get("chat_template")
    if "chat_template.jinja" in files:
        template = files["chat_template.jinja"].decode("utf-8", "replace")
    if isinstance(template, str):
        writer.add_chat_template(template)


def _added_tokens(files: Mapping[str, bytes]) -> dict[int, tuple[str, bool]]:
    """Return {id: (text, whether it is a control token)} of tokens that fine-tunes added to tokenizer.model."""
    found = {id: (text, False) for text, id in _json(files, "added_tokens.json").items() if isinstance(id, int)}
    decoder = _json(files, "tokenizer_config.json").get("added_tokens_decoder")
    for id, entry in decoder.items() if isinstance(decoder, dict) else ():
        if id.isdecimal() and isinstance(entry, dict) and isinstance(entry.get("content"), str):
            found[int(id)] = (entry["content"], entry.get("special") is True)
    return found


def _json(files: Mapping[str, bytes], name: str) -> dict[str, Any]:
    return parse_json_object(files[name], name) if name in files else {}
