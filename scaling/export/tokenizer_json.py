"""A vocabulary as the files that Hugging Face's tokenizers read, with the same ids.

Not in the design's list of modules: export.py would pass 300 lines.
"""

from __future__ import annotations

from typing import Any

from scaling.data.tokenizer import SPACE_SYMBOL, SentencePieceTokenizer, Tokenizer
from scaling.errors import InputError


def tokenizer_files(vocabulary: Tokenizer) -> dict[str, Any]:
    """tokenizer.json and tokenizer_config.json. A text begins with the end of the document before it, as prompts of
    `scaling generate` do; special ids are not read out of a text. Raises InputError when the vocabulary is a
    SentencePiece model whose pieces are not found by merging pairs (unigram, or pieces of the user's own)."""
    if isinstance(vocabulary, SentencePieceTokenizer):
        names, parts = [vocabulary.processor.id_to_piece(i) for i in range(vocabulary.size)], _merging(vocabulary)
    else:
        names, parts = ["<pad>", "</s>", "<unk>", *_printable()], _bytes()
    special = [i for i, piece in enumerate(vocabulary.pieces) if not piece]
    model: dict[str, Any] = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "fuse_unk": False,
        "ignore_merges": False,
    }
    model |= {"continuing_subword_prefix": None, "end_of_word_suffix": None, **parts.pop("model")}
    model["vocab"] = {name: i for i, name in enumerate(names)}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    start, ids = names[vocabulary.eos_id], [vocabulary.eos_id]
    first = {"SpecialToken": {"id": start, "type_id": 0}}
    template = {
        "type": "TemplateProcessing",
        "single": [first, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [first, {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {start: {"id": start, "ids": ids, "tokens": [start]}},
    }
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": i, "content": names[i], **flags} for i in special],
        **parts,
        "post_processor": template,
        "model": model,
    }
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": start,
        "eos_token": start,
        "pad_token": names[special[0]],
        "clean_up_tokenization_spaces": False,
        "split_special_tokens": True,
        "model_max_length": 1_000_000,
    }
    return {"tokenizer.json": tokenizer, "tokenizer_config.json": config}


def _printable() -> list[str]:
    """The character by which tokenizers write each byte (Radford et al. 2019): itself where it prints, else the next
    one from U+0100 on."""
    shown = [byte for byte in range(256) if 33 <= byte <= 126 or 161 <= byte <= 172 or byte >= 174]
    others = iter(range(256, 512))
    return [chr(byte if byte in shown else next(others)) for byte in range(256)]


def _bytes() -> dict[str, Any]:
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    return {
        "normalizer": None,
        "pre_tokenizer": level,
        "decoder": level,
        "model": {"byte_fallback": False, "merges": []},
    }


def _merging(vocabulary: SentencePieceTokenizer) -> dict[str, Any]:
    """A piece is merged from every pair of pieces that spell it, the best-scored first."""
    processor = vocabulary.processor
    plain = {
        processor.id_to_piece(i): i for i, piece in enumerate(vocabulary.pieces) if piece and not processor.is_byte(i)
    }
    scores = [processor.get_score(i) for piece, i in plain.items() if len(piece) > 1]
    if any(score % 1 for score in scores) or len(set(scores)) < len(scores):
        raise InputError(
            f"vocabulary {vocabulary.name!r}: its pieces are not the steps of a BPE merge, in order; an export needs "
            "such a model, as scaling data vocabulary trains it, or bytes"
        )
    ranked = sorted(plain, key=lambda piece: (-processor.get_score(plain[piece]), plain[piece]))
    merges = [
        [piece[:cut], piece[cut:]]
        for piece in ranked
        for cut in range(1, len(piece))
        if piece[:cut] in plain and piece[cut:] in plain
    ]
    return {
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": SPACE_SYMBOL},
        "pre_tokenizer": None,
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": SPACE_SYMBOL}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
            ],
        },
        "model": {"byte_fallback": True, "merges": merges},
    }
