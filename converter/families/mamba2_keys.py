"""Mamba2 in a config: its keys, as transformers' hybrids of it and attention have them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from converter.decoder import Activation, Mamba2, Norm
from converter.errors import SourceError, UnsupportedError
from converter.families.tensors import Names, WeightSource

MAMBA_NAMES: Names = (
    ("layers.{i}.mamba.norm", "layers.{i}.input_layernorm.weight", "blk.{i}.attn_norm.weight"),
    ("layers.{i}.mamba.gate", "layers.{i}.mamba.in_proj.weight", "blk.{i}.ssm_in.weight"),
    ("layers.{i}.mamba.xbc", "layers.{i}.mamba.in_proj.weight", "blk.{i}.ssm_in.weight"),
    ("layers.{i}.mamba.dt", "layers.{i}.mamba.in_proj.weight", "blk.{i}.ssm_in.weight"),
    ("layers.{i}.mamba.conv", "layers.{i}.mamba.conv1d.weight", "blk.{i}.ssm_conv1d.weight"),
    ("layers.{i}.mamba.step", "layers.{i}.mamba.dt_bias", "blk.{i}.ssm_dt.bias"),
    ("layers.{i}.mamba.decay", "layers.{i}.mamba.A_log", "blk.{i}.ssm_a"),
    ("layers.{i}.mamba.skip", "layers.{i}.mamba.D", "blk.{i}.ssm_d"),
    ("layers.{i}.mamba.out_norm", "layers.{i}.mamba.norm.weight", "blk.{i}.ssm_norm.weight"),
    ("layers.{i}.mamba.o", "layers.{i}.mamba.out_proj.weight", "blk.{i}.ssm_out.weight"),
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Mamba2Keys:
    """The fields of a family that has such layers; a class beside `Family`."""

    # How steps began in training, and how many tokens transformers takes at once.
    of_training: ClassVar[frozenset[str]] = frozenset(
        {"time_step_min", "time_step_max", "mamba_chunk_size"}
    )

    mamba_n_heads: int = 128
    mamba_n_groups: int = 1
    mamba_d_state: int = 256
    mamba_d_head: int | None = None
    mamba_d_conv: int = 4
    mamba_expand: int = 2
    mamba_conv_bias: bool = True
    mamba_proj_bias: bool = False
    time_step_limit: Sequence[float] | None = None

    @staticmethod
    def resolve_mamba(config: Mapping[str, Any]) -> dict[str, Any]:
        """A config in which widths and limits are numbers."""
        resolved = dict(config)
        if resolved.get("mamba_d_head") == "auto":
            del resolved["mamba_d_head"]
        limits = resolved.get("time_step_limit")
        if isinstance(limits, list | tuple):
            # transformers writes {"__float__": "Infinity"}.
            resolved["time_step_limit"] = [
                math.inf if value == {"__float__": "Infinity"} else value for value in limits
            ]
        return resolved

    @staticmethod
    def mamba_source(path: str, tensor: str, fmt: str) -> WeightSource | None:
        """How a weight is stored that is not stored as it is; None of others."""
        part = path.partition(".mamba.")[2]
        if fmt == "gguf" and part in ("decay", "skip", "out_norm"):
            return WeightSource(tensor, is_flattened=True)
        return WeightSource(tensor, is_log_of_negative=True) if part == "decay" else None

    def mamba(
        self,
        family: str,
        width: int,
        activation: Activation,
        norm: Norm | None,
        norm_groups: int = 1,
        gates_last: bool = False,
        has_out_bias: bool | None = None,
    ) -> Mamba2:
        """The mixer.

        Args:
            family: for messages.
            width: of all heads together.
            norm_groups, gates_last: see `Mamba2`.
            has_out_bias: where the last projection's is another key than the first one's.

        Raises:
            SourceError: the numbers contradict each other.
            UnsupportedError: the convolution sees one token alone.
        """
        heads, head_dim = self.mamba_n_heads, self.mamba_d_head or width // self.mamba_n_heads
        if heads * head_dim != width or heads % self.mamba_n_groups:
            raise SourceError(
                f"{family} config",
                f"mamba_n_heads={heads} of mamba_d_head={head_dim} in mamba_n_groups="
                f"{self.mamba_n_groups} are not {width} values",
                "check config.json",
            )
        if self.mamba_d_conv < 2:
            raise UnsupportedError(
                f"{family}: mamba_d_conv={self.mamba_d_conv}",
                "not supported, only 2 or more is",
                "use another checkpoint of this model",
            )
        limits = self.time_step_limit if self.time_step_limit is not None else (0.0, math.inf)
        if len(limits) != 2 or not 0 <= limits[0] <= limits[1]:
            raise SourceError(
                f"{family} config",
                f"time_step_limit={list(limits)!r:.80} is no least and largest step",
                "check config.json",
            )
        first = ("gate", "xbc", "dt") if self.mamba_proj_bias else ()
        out = self.mamba_proj_bias if has_out_bias is None else has_out_bias
        return Mamba2(
            num_heads=heads,
            head_dim=head_dim,
            groups=self.mamba_n_groups,
            state_dim=self.mamba_d_state,
            kernel=self.mamba_d_conv,
            activation=activation,
            norm=norm,
            norm_groups=norm_groups,
            gates_last=gates_last,
            biases=(
                *first,
                *(("conv",) if self.mamba_conv_bias else ()),
                *(("o",) if out else ()),
            ),
            step_limits=(limits[0], limits[1]),
        )
