"""A folder of Core ML packages as one model, called as ANEMLL's runtimes call it.

Which packages belong together, and which positions they have, says `meta.yaml`; what runs them is
`runner.mlprogram`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from converter.checkpoint.files import unreadable
from converter.coreml.inspection import packages_of, read_meta, refuse_compiled
from converter.coreml.meta import META
from converter.errors import SourceError, UnsupportedError
from converter.text.tokenizer_json import load_tokenizer_json
from runner.mlprogram import Package

# Bytes of weights in float32 that are kept in memory: some 400 million.
_MOST_BYTES = 1_600_000_000


class CoreMLModel:
    """The model of a folder.

    Attributes:
        context_length: positions.
        batch: tokens of a `prefill`.

    Raises:
        SourceError: a part is missing or damaged.
        UnsupportedError: it is too large for numpy, or gives no logits.
    """

    def __init__(self, path: Path, rounds: bool = True) -> None:
        """
        Args:
            path: the folder, or one of its packages.
            rounds: every result to float16, which is what the Neural Engine computes in.
        """
        self.folder = path.parent if path.suffix == ".mlpackage" else path
        meta = read_meta(self.folder)
        try:
            self.context_length = int(meta.parameters["context_length"])
            self.batch = int(meta.parameters["batch_size"])
        except (KeyError, TypeError, ValueError) as error:
            raise SourceError(
                str(self.folder / META), f"does not say {error}", "convert the model again"
            ) from error
        paths = packages_of(self.folder, meta)[: len(meta.packages)]
        if not paths:
            raise SourceError(
                str(self.folder / META),
                "does not say what its packages are called",
                "convert the model again",
            )
        for part in paths:
            refuse_compiled(part)
        window = meta.parameters.get("sliding_window")
        self._window = int(window) if window and int(window) < self.context_length else None
        if path.suffix == ".mlpackage" and path.name not in {part.name for part in paths}:
            raise SourceError(
                str(path), f"is no part of the model of {META} beside it", "name one of its parts"
            )
        packages = [Package(part, rounds) for part in paths]
        # In parts: what gives the embedding, layers, and what gives logits. Else one for all.
        is_one = len(packages) == 1
        self._embeddings: Package | None = None if is_one else packages[0]
        self._chunks = packages if is_one else packages[1:-1]
        self._head: Package | None = None if is_one else packages[-1]
        self._check(packages)

    def _check(self, packages: Sequence[Package]) -> None:
        last = packages[-1].functions["main" if self._head else "infer"]
        if not all(re.fullmatch(r"logits\d+", name) for name in last.outputs):
            raise UnsupportedError(
                str(packages[-1].path),
                f"gives {', '.join(last.outputs)}, no logits to compare",
                "convert the model without --argmax",
            )
        nbytes = sum(package.dense_bytes for package in packages)
        if nbytes > _MOST_BYTES:
            raise UnsupportedError(
                str(self.folder),
                f"has {nbytes / 4e6:.0f} million weights, and the interpreter is for small models, "
                f"of at most {_MOST_BYTES / 4e6:.0f} million",
                "measure a smaller model, or this one's .litertlm file",
            )

    @cached_property
    def _tokenizer(self) -> Any:
        return load_tokenizer_json(self._read("tokenizer.json"), str(self.folder))

    @cached_property
    def start_tokens(self) -> list[int]:
        """What stands before any text: as the tokenizer says, or the settings beside it."""
        found = self._tokenizer.encode("").ids
        settings = json.loads(self._read("tokenizer_config.json"))
        if not found and settings.get("add_bos_token"):
            bos = settings.get("bos_token")
            text = bos["content"] if isinstance(bos, dict) else bos
            found = [self._tokenizer.token_to_id(text)]
        return list(found)

    def _read(self, name: str) -> bytes:
        path = self.folder / name
        try:
            return path.read_bytes()
        except OSError as error:
            raise unreadable(path, error) from error

    def tokenize(self, text: str) -> list[int]:
        """Token ids of a text, without those that start one."""
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def detokenize(self, tokens: Sequence[int]) -> str:
        """The text of some tokens."""
        return str(self._tokenizer.decode(list(tokens)))

    def logits(self, tokens: Sequence[int], given: int = 0) -> Iterator[np.ndarray]:
        """The logits after each token from number `given` on, `(vocabulary,)`.

        Raises:
            UnsupportedError: see `Conversations`.
        """
        return (logits for [logits] in self.logits_of_all([tokens], given))

    def logits_of_all(self, texts: Sequence[Sequence[int]], given: int = 0) -> Iterator[np.ndarray]:
        """The same of several texts at once: `(texts, vocabulary)`, of no use past a text's end.

        The weights, which take most of the time to read, are read once for all.
        """
        length = max(map(len, texts))
        tokens = np.array([[*text, *[0] * (length - len(text))] for text in texts])
        conversations = Conversations(self, len(texts))
        conversations.read(tokens[:, :given])
        for column in tokens[:, given:].T:
            yield conversations.next_logits(column.tolist())


class Conversations:
    """A model's states, and how far some conversations are, all of them as far.

    Raises:
        UnsupportedError: numbers were too large for float16, or a function is missing.
    """

    def __init__(self, model: CoreMLModel, count: int = 1) -> None:
        self._model = model
        self._axis = () if count == 1 else (count,)  # see `runner.mlprogram`
        self._states = model._chunks[0].new_states(self._axis)
        self._position = 0

    def read(self, tokens: np.ndarray) -> None:
        """Take `(conversations, n)` tokens in: in whole batches, then one by one."""
        batch, at, end = self._model.batch, 0, tokens.shape[1]
        while at < end:
            count = batch if at + batch <= end else 1
            self._call(tokens[:, at : at + count])
            at += count

    def next_logits(self, tokens: Sequence[int]) -> np.ndarray:
        """The logits after one more token of each, `(conversations, vocabulary)`."""
        outputs, head = self._call(np.array(tokens)[:, None]), self._model._head
        if head is not None:
            outputs = head.run("main", {"hidden_states": outputs["output_hidden_states"]})
        parts = [outputs[f"logits{i + 1}"][..., 0, 0, :] for i in range(len(outputs))]
        logits = np.concatenate(parts, axis=-1).reshape(len(tokens), -1)
        if not np.isfinite(logits).all():
            raise UnsupportedError(
                str(self._model.folder),
                f"its numbers exceed float16's 65504 at position {self._position - 1}",
                "convert the model with --fp16-scale auto",
            )
        return logits

    def _call(self, tokens: np.ndarray) -> dict[str, np.ndarray]:
        """One call of every part, for `(conversations, n)` tokens."""
        model, first, count = self._model, self._position, tokens.shape[1]
        positions = np.arange(first, first + count, dtype=np.int32)
        seen = np.arange(model.context_length) <= positions[:, None]
        inputs: dict[str, np.ndarray] = {
            "position_ids": positions,
            "causal_mask": np.where(seen, 0, -np.inf).astype(np.float16)[None, None],
            "current_pos": positions[:1],
        }
        name = self._function(count)
        ids = {"input_ids": tokens.astype(np.int32).reshape(*self._axis, 1, count)}
        outputs = model._embeddings.run("main", ids) if model._embeddings else ids
        for chunk in model._chunks:
            # What one gives, the next one takes.
            [given] = outputs.values()
            taken = "hidden_states" if model._embeddings else "input_ids"
            outputs = chunk.run(name, {taken: given, **inputs}, self._states)
        self._position += count
        return outputs

    def _function(self, count: int) -> str:
        """The function for so many tokens: others where windows are full."""
        name, window = "infer" if count == 1 else "prefill", self._model._window
        if window is not None and self._position >= window:
            name += "_rotate"
        if name not in self._model._chunks[0].functions:
            raise UnsupportedError(
                str(self._model._chunks[0].path),
                f"has no function {name}",
                "convert the model without --split-rotate",
            )
        return name
