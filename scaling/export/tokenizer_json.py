"""Converts a tokenizer to the files of Hugging Face's tokenizers, with the same ids; export.py writes them."""

from __future__ import annotations

from typing import Any

from scaling.data.tokenizer import SPACE_SYMBOL, SentencePieceTokenizer, Tokenizer
from scaling.errors import InputError

TOKENIZER, TOKENIZER_CONFIG = "tokenizer.json", "tokenizer_config.json"


def tokenizer_files(tokenizer: Tokenizer) -> dict[str, Any]:
    """The contents of tokenizer.json and tokenizer_config.json, by file name.

    An encoded text begins with an end-of-document id, as the prompts of `scaling generate` do; the names of special ids
    inside a text are encoded as text. Raises InputError for a SentencePiece model that does not encode by merging pairs
    (a unigram model, or one with pieces that its user defined)."""
    if isinstance(tokenizer, SentencePieceTokenizer):
        names, parts = (
            [tokenizer.processor.id_to_piece(i) for i in range(tokenizer.size)],
            _sentencepiece_parts(tokenizer),
        )
    else:
        names, parts = ["<pad>", "</s>", "<unk>", *_byte_characters()], _byte_parts()
    special = [i for i, piece in enumerate(tokenizer.pieces) if not piece]
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
    eos, eos_ids = names[tokenizer.eos_id], [tokenizer.eos_id]
    first = {"SpecialToken": {"id": eos, "type_id": 0}}
    template = {
        "type": "TemplateProcessing",
        "single": [first, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [first, {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {eos: {"id": eos, "ids": eos_ids, "tokens": [eos]}},
    }
    tokenizer_json = {
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
        "bos_token": eos,
        "eos_token": eos,
        "pad_token": names[special[0]],
        "clean_up_tokenization_spaces": False,
        "split_special_tokens": True,
        "model_max_length": 1_000_000,
    }
    return {TOKENIZER: tokenizer_json, TOKENIZER_CONFIG: config}


def _byte_characters() -> list[str]:
    """[256] the character that stands for each byte in byte-level BPE (Radford et al. 2019): the byte's own character
    when that is printable, else the next unused one from U+0100."""
    printable = [byte for byte in range(256) if 33 <= byte <= 126 or 161 <= byte <= 172 or byte >= 174]
    replacements = iter(range(256, 512))
    return [chr(byte if byte in printable else next(replacements)) for byte in range(256)]


def _byte_parts() -> dict[str, Any]:
    """The parts of tokenizer.json that are particular to the byte tokenizer: byte-level BPE without merges."""
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    return {
        "normalizer": None,
        "pre_tokenizer": level,
        "decoder": level,
        "model": {"byte_fallback": False, "merges": []},
    }


def _sentencepiece_parts(tokenizer: SentencePieceTokenizer) -> dict[str, Any]:
    """The parts of tokenizer.json that are particular to a SentencePiece BPE model.

    Such a model merges the neighbouring pieces whose concatenation has the best score. That equals a list of merges in
    which every pair of pieces that concatenates to a piece is listed, in the order of the pieces' scores."""
    processor = tokenizer.processor
    id_of_piece = {
        processor.id_to_piece(i): i for i, piece in enumerate(tokenizer.pieces) if piece and not processor.is_byte(i)
    }
    scores = [processor.get_score(i) for piece, i in id_of_piece.items() if len(piece) > 1]
    # BPE gives merged pieces the scores 0, -1, -2, ...; a unigram model gives log probabilities.
    if any(score % 1 for score in scores) or len(set(scores)) < len(scores):
        raise InputError(
            f"vocabulary {tokenizer.name!r}: its pieces are not ordered BPE merges: must be bytes or a BPE model, such "
            "as scaling data vocabulary trains"
        )
    by_score = sorted(id_of_piece, key=lambda piece: (-processor.get_score(id_of_piece[piece]), id_of_piece[piece]))
    merges = [
        [piece[:cut], piece[cut:]]
        for piece in by_score
        for cut in range(1, len(piece))
        if piece[:cut] in id_of_piece and piece[cut:] in id_of_piece
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
