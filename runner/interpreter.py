"""Runs the graph of a converted bundle as the engine does, in the ai-edge-litert interpreter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert.interpreter import Interpreter

from converter.litertlm.inspection import read_bundle
from runner.native_log import NativeLog


class GraphRunner:
    """One conversation with the model inside a `.litertlm` file.

    The caches live outside the graph, masks are additive and made only where the graph takes them,
    and prefills are padded with zeros, as in the engine.
    """

    def __init__(self, bundle: Path) -> None:
        info = read_bundle(bundle)
        section = info.section("TFLiteModel")
        assert section is not None
        with bundle.open("rb") as file:
            file.seek(section.offset)
            model = file.read(section.nbytes)
        self._interpreter = Interpreter(model_content=model)
        self._runners: dict[str, Any] = {}  # made when they are used: each takes a second
        decode = next(s for s in info.model.signatures if s.name == "decode")
        self._caches = {
            tensor.name: np.zeros(tensor.shape, tensor.dtype)
            for tensor in decode.inputs
            if tensor.name.startswith("kv_cache_")
        }
        self._masked = next((t.shape[3] for t in decode.inputs if t.name == "mask"), None)
        self.prefill_lengths = sorted(
            int(signature.name.split("_")[1])
            for signature in info.model.signatures
            if signature.name.startswith("prefill_")
        )

    def prefill(self, length: int, tokens: list[int], start: int = 0) -> None:
        """Put `tokens`, `length` of them or fewer, into the caches from position `start` on."""
        self._call(f"prefill_{length}", length, tokens, start)

    def decode(self, token: int, position: int) -> np.ndarray:
        """The logits after `token`, shape `(vocabulary,)`."""
        return self._call("decode", 1, [token], position)["logits"][0, 0]

    def _call(
        self, signature: str, length: int, tokens: list[int], start: int
    ) -> dict[str, np.ndarray]:
        padding = length - len(tokens)
        positions = [*range(start, start + len(tokens)), *[0] * padding]
        masks = {}
        if self._masked:
            mask = np.full(
                (1, 1, length, self._masked), -0.7 * np.finfo(np.float32).max, np.float32
            )
            for row, position in enumerate(positions[: len(tokens)]):
                mask[0, 0, row, : position + 1] = 0
            masks["mask"] = mask
        with NativeLog():  # the first call says that there is a delegate
            if signature not in self._runners:
                self._runners[signature] = self._interpreter.get_signature_runner(signature)
            result: dict[str, np.ndarray] = self._runners[signature](
                tokens=np.array([[*tokens, *[0] * padding]], np.int32),
                input_pos=np.array(positions, np.int32),
                **masks,
                **self._caches,
            )
        for name in self._caches:
            self._caches[name] = result[name]
        return result
