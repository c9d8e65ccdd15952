"""Adapters of PEFT: a folder with adapter_config.json and adapter_model.safetensors.

https://huggingface.co/docs/peft
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from converter.checkpoint.files import ADAPTER_FILES, PositionedFile, why_not_an_adapter
from converter.checkpoint.safetensors import SafetensorsCheckpoint, read_config, read_header
from converter.families.base import Family
from converter.families.matching import without_wrappers
from converter.families.tensors import WeightSource
from converter.weights.lora_adapter import MAGNITUDE, ROWS, WHOLE, Adapter, damaged
from converter.weights.lora_config import check_config, scaling
from converter.weights.lora_update import LowRank

# What a tensor is, by its name: the module, and what it is to that.
_PART = re.compile(
    r"(?P<module>.+)\.(?:lora_(?P<side>(?:embedding_)?[AB])"
    r"|(?P<magnitude>lora_magnitude_vector)|token_adapter\.trainable_tokens_delta)"
    r"(?:\.default)?(?:\.weight)?"
)
_WHOLE = re.compile(
    r"(?P<module>.+?)(?:\.base_layer|\.modules_to_save(?:\.default)?)?\.(?P<kind>weight|bias)"
)


class PeftAdapter(Adapter):
    """An open folder.

    Attributes:
        config: the contents of adapter_config.json.

    Raises:
        SourceError: it is not there, or damaged.
        UnsupportedError: it is not a LoRA adapter of peft, or cannot be merged row by row.
    """

    def __init__(self, path: Path) -> None:
        try:
            names = {entry.name for entry in path.iterdir()}
        except OSError:
            names = set()
        unusable = why_not_an_adapter(f"--lora {path}", names)
        if unusable is not None:
            raise unusable
        config_name, weights_name = ADAPTER_FILES
        self.path = path
        self.config = read_config(path / config_name)
        check_config(self.config, path)
        with ExitStack() as stack:
            file = stack.enter_context(PositionedFile(path / weights_name))
            entries = list(read_header(file))
            self.weights = SafetensorsCheckpoint.of_file(path, file, entries, stack.pop_all())

    @property
    def made_for(self) -> str:
        return str(self.config.get("base_model_name_or_path") or super().made_for)

    def layout(self, family: Family) -> Family:
        return family  # it names its base, and no family

    def part_of(self, tensor: str) -> tuple[str, str]:
        match = _PART.fullmatch(tensor)
        if match is not None:
            part = match["side"] or (MAGNITUDE if match["magnitude"] else ROWS)
            return f"{without_wrappers(match['module'])}.weight", part
        match = _WHOLE.fullmatch(tensor)
        if match is not None:
            return f"{without_wrappers(match['module'])}.{match['kind']}", WHOLE
        return "", ""

    def scaling(self, tensor: str, rank: int) -> float:
        return scaling(self.config, _module(tensor), rank, self.path)

    def token_rows(self, values: str) -> Sequence[int]:
        stated = self.config.get("trainable_token_indices")
        if isinstance(stated, dict):
            module = values.partition(".token_adapter")[0].rpartition(".")[2]
            stated = stated.get(module)
        return stated if isinstance(stated, list) else []

    def share(self, found: dict[str, dict[str, str]], sources: dict[str, WeightSource]) -> None:
        """As peft loads it: only what is in `modules_to_save` became a copy for one use.

        Single rows it ties itself.
        """
        copies = self.config.get("modules_to_save") or []
        for path, other, module in (
            ("embedding", "head", "embed_tokens"),
            ("head", "embedding", "lm_head"),
        ):
            parts = found.get(path, {})
            for part in (ROWS,) if module in copies else (WHOLE, ROWS):
                if part in parts:
                    found.setdefault(other, {}).setdefault(part, parts[part])
                    sources.setdefault(other, sources[path])

    def _low_rank(
        self, parts: Mapping[str, str], source: WeightSource, shape: tuple[int, ...]
    ) -> LowRank:
        found = super()._low_rank(parts, source, shape)
        if bool(self.config.get("use_dora")) != (found.magnitude is not None):
            module = _module(found.left.tensor)
            raise damaged(self.path, f"use_dora and the tensors of {module} contradict each other")
        return found


def _module(tensor: str) -> str:
    return tensor.partition(".lora_")[0]
