"""A tokenizer as the files of a Hugging Face folder, for runtimes that read these.

Such runtimes render the source's own chat template, as transformers does, and are given it where
all of them look: in tokenizer_config.json.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from converter.checkpoint.base import Checkpoint
from converter.checkpoint.files import PositionedFile, something_else
from converter.checkpoint.gguf import GGUFCheckpoint
from converter.errors import UnsupportedError
from converter.text.bundle_tokenizer import BundleTokenizer
from converter.text.pieces_json import Prefix, is_bpe, pieces_to_json
from converter.text.tokenizer import folder_template, read_json
from converter.text.tokenizer_json import HF_KIND, SAVE_AGAIN

JSON, CONFIG, JINJA = "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"
# Those that are copied where a folder has them.
_COPIED = (
    JSON, CONFIG, "tokenizer.model", "vocab.json", "merges.txt", "added_tokens.json",
    "special_tokens_map.json", JINJA, "generation_config.json",
)  # fmt: skip
_ANY_CLASS = "PreTrainedTokenizerFast"


def tokenizer_files(
    checkpoint: Checkpoint, tokenizer: BundleTokenizer, chosen_template: str | None = None
) -> dict[str, bytes | Path]:
    """The files by name: those that are copied as paths, the others made.

    Args:
        tokenizer: the checkpoint's (`load_tokenizer`).
        chosen_template: what to take for the source's own template, "" for none.

    Raises:
        SourceError: a file is damaged.
        UnsupportedError: no tokenizer.json can be made of it.
    """
    files: dict[str, bytes | Path] = {}
    template = tokenizer.chat_template if chosen_template is None else chosen_template
    if checkpoint.format != "gguf":
        folder = checkpoint.path
        files = {name: _own(folder / name) for name in _COPIED if (folder / name).is_file()}
        settings = read_json(folder / CONFIG)
        if chosen_template is None:
            template = folder_template(folder, settings)
    if JSON not in files:
        files[JSON] = _as_json(tokenizer)
    if CONFIG in files:
        settings = settings | {"chat_template": template}
    else:
        settings = {
            "tokenizer_class": _ANY_CLASS,
            "bos_token": tokenizer.bos_token,
            "eos_token": tokenizer.eos_token or _end_token(tokenizer),
            "add_bos_token": tokenizer.adds_bos,
            "clean_up_tokenization_spaces": False,
            "chat_template": template,
        }
    if not template:
        del settings["chat_template"]
        files.pop(JINJA, None)
    elif JINJA in files:  # transformers looks there first
        files[JINJA] = template.encode()
    files[CONFIG] = json.dumps(settings, indent=2, ensure_ascii=False).encode() + b"\n"
    return files


def _end_token(tokenizer: BundleTokenizer) -> str | None:
    """The token that ends a turn, where the source names none as the end."""
    ends = set(tokenizer.eos_token_ids)
    return next((text for text, i in tokenizer.special_tokens.items() if i in ends), None)


def class_of(files: Mapping[str, bytes | Path]) -> str:
    """The tokenizer's class, as tokenizer_config.json names it."""
    made = files[CONFIG]
    assert isinstance(made, bytes)
    return str(json.loads(made).get("tokenizer_class") or _ANY_CLASS)


def _own(path: Path) -> Path:
    """A file that is what its name says."""
    with PositionedFile(path) as file:
        if (other := something_else(file)) is not None:
            raise other
    return path


def pad_token_id(checkpoint: Checkpoint) -> int | None:
    """The id of the token with which rows are filled up; None where the source says none."""
    said = [
        config.get("pad_token_id") for config in (checkpoint.config, checkpoint.generation_config)
    ]
    if isinstance(checkpoint, GGUFCheckpoint):
        said.append(checkpoint.metadata.get("tokenizer.ggml.padding_token_id"))
    return next((value for value in said if type(value) is int and value >= 0), None)


def _as_json(tokenizer: BundleTokenizer) -> bytes:
    data = tokenizer.data
    if tokenizer.kind != HF_KIND:
        data = _pieces_as_json(data)
    if not tokenizer.adds_bos:
        return data
    # In a bundle the engine puts the start token before text.
    content: dict[str, Any] = json.loads(data)
    bos = tokenizer.bos_token
    start = {"SpecialToken": {"id": bos, "type_id": 0}}
    text, second = ({"Sequence": {"id": name, "type_id": i}} for i, name in enumerate("AB"))
    content["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [start, text],
        "pair": [start, text, {"SpecialToken": {"id": bos, "type_id": 1}}, second],
        "special_tokens": {bos: {"id": bos, "ids": [tokenizer.bos_token_id], "tokens": [bos]}},
    }
    return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()


def _pieces_as_json(proto: bytes) -> bytes:
    """A tokenizer.json that reads text as a SentencePiece model does."""
    from sentencepiece import sentencepiece_model_pb2

    model = sentencepiece_model_pb2.ModelProto()
    model.ParseFromString(proto)
    if not is_bpe(model):
        raise UnsupportedError(
            "the tokenizer",
            "it is a Unigram model without a tokenizer.json, which runtimes need",
            SAVE_AGAIN,
        )
    prefixed = model.normalizer_spec.add_dummy_prefix
    return pieces_to_json(model, Prefix.PREPENDED if prefixed else Prefix.NEVER)
