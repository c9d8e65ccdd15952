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
_AT_ONCE = 64  # calls of one token each


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
            UnsupportedError: see `Conversation`.
        """
        conversation = Conversation(self)
        conversation.read(tokens[:given])
        for first in range(given, len(tokens), _AT_ONCE):
            yield from conversation.next_logits(tokens[first : first + _AT_ONCE])


class Conversation:
    """A model's states, and how far a conversation is.

    Raises:
        UnsupportedError: numbers were too large for float16, or a function is missing.
    """

    def __init__(self, model: CoreMLModel) -> None:
        self._model = model
        self._states = model._chunks[0].new_states()
        self._position = 0

    def read(self, tokens: Sequence[int]) -> None:
        """Take tokens in: in whole batches, the others one by one."""
        batch = self._model.batch
        whole = len(tokens) // batch * batch
        for first in range(0, whole, batch):
            self._call("prefill", np.array([tokens[first : first + batch]]))
        for _ in self._infer(tokens[whole:]):
            pass

    def next_logits(self, tokens: Sequence[int]) -> np.ndarray:
        """The logits after each of some more tokens, `(n, vocabulary)`."""
        return np.concatenate([self._logits(outputs) for outputs in self._infer(tokens)])

    def _infer(self, tokens: Sequence[int]) -> Iterator[dict[str, np.ndarray]]:
        """What `infer` gives for each token.

        Calls are made at once, so that weights are read once for all of them, as long as windows
        are not full: what moves on by one token at a time is done one by one.
        """
        at, window = 0, self._model._window
        while at < len(tokens):
            count = min(_AT_ONCE, len(tokens) - at)
            if window is not None:
                count = min(count, max(1, window - self._position))
            calls = (count,) if count > 1 else ()  # see `runner.mlprogram`
            yield self._call("infer", np.reshape(tokens[at : at + count], (*calls, 1, 1)))
            at += count

    def _logits(self, outputs: dict[str, np.ndarray]) -> np.ndarray:
        head = self._model._head
        if head is not None:
            outputs = head.run("main", {"hidden_states": outputs["output_hidden_states"]})
        parts = [outputs[f"logits{i + 1}"][..., 0, :] for i in range(len(outputs))]
        logits = np.concatenate(parts, axis=-1)
        logits = logits.reshape(-1, logits.shape[-1])
        finite = np.isfinite(logits).all(axis=-1)
        if not finite.all():
            raise UnsupportedError(
                str(self._model.folder),
                "its numbers exceed float16's 65504 at position "
                f"{self._position - len(logits) + finite.argmin()}",
                "convert the model with --fp16-scale auto",
            )
        return logits

    def _call(self, kind: str, tokens: np.ndarray) -> dict[str, np.ndarray]:
        """One call of every part, with tokens `(1, n)`; or several, with `(calls, 1, 1)`."""
        model, first = self._model, self._position
        shape = (*tokens.shape[:-2], tokens.shape[-1])  # that of positions
        positions = np.arange(first, first + tokens.size, dtype=np.int32).reshape(shape)
        seen = np.arange(model.context_length) <= positions[..., None]
        mask = np.where(seen, 0, -np.inf).astype(np.float16)
        inputs: dict[str, np.ndarray] = {
            "position_ids": positions,
            "causal_mask": mask[..., None, None, :, :],
            "current_pos": positions[..., :1],
        }
        name = self._function(kind)
        outputs = {"input_ids": tokens.astype(np.int32)}
        if model._embeddings is not None:
            outputs = model._embeddings.run("main", outputs)
        for chunk in model._chunks:
            # What one gives, the next one takes.
            [given] = outputs.values()
            taken = "hidden_states" if model._embeddings else "input_ids"
            outputs = chunk.run(name, {taken: given, **inputs}, self._states)
        self._position += tokens.size
        return outputs

    def _function(self, name: str) -> str:
        """The function of this kind: another one where windows are full."""
        window = self._model._window
        if window is not None and self._position >= window:
            name += "_rotate"
        if name not in self._model._chunks[0].functions:
            raise UnsupportedError(
                str(self._model._chunks[0].path),
                f"has no function {name}",
                "convert the model without --split-rotate",
            )
        return name
