"""What the Neural Engine and ANEMLL's runtimes take, checked before anything is written.

The engine refuses in silence: what it does not take runs elsewhere, slowly. So a plan that it would
not take is refused here, with the nearest that it would; what is only slow is a note. Most of these
rules were found by others on devices (ANEForge, CoreML-LLM, issues of ANEMLL and coremltools).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

from converter.checkpoint.sources import shown
from converter.coreml.chunks import MAX_CHUNK_MB, MIB, MOST_ROWS
from converter.coreml.decoder_program import StateSpec
from converter.decoder import Attention, DecoderSpec
from converter.errors import OptionError, UnsupportedError

STEP = 32  # divides the length of a state
MOST_POSITIONS = MOST_ROWS  # rows of the rotary tables
_MOST_STATES = 2
_LEAST_BATCH = 16
_SAFE_BATCH = 64
_LEAST_GROUP = 8
_TILES = (1, 2, 3, 4, 8)
_MOST_NAMED = 64
# Parts of file names by which runtimes tell files apart.
_RESERVED = ("chunk_", "_lut", "embeddings", "FFN_PF", "lm_head", "monolithic")


def check_context(context: int, longest: int, name: str) -> None:
    """The number of positions.

    Args:
        longest: for which the model was made.
        name: the model's.

    Raises:
        OptionError: it is too long, or no multiple of `STEP`.
    """
    most = min(longest, MOST_POSITIONS) // STEP * STEP
    what = f"--context {context}"
    if context > MOST_POSITIONS:
        raise OptionError(
            what,
            f"the Neural Engine takes tables of at most {MOST_POSITIONS} positions",
            f"choose {most} or less",
        )
    if context > longest:
        raise OptionError(
            what, f"{name} was made for at most {longest} positions", f"choose {most} or less"
        )
    if context % STEP or not context:
        below = context // STEP * STEP
        near = [n for n in (below, below + STEP) if 0 < n <= most]
        raise OptionError(
            what,
            f"the Neural Engine takes caches in steps of {STEP} positions",
            f"choose {' or '.join(map(str, near))}",
        )


def check_batch(batch: int, context: int) -> None:
    """The number of tokens that are read at once.

    Raises:
        OptionError: it is no power of two, below 16, or above the context.
    """
    below = _power_below(max(batch, _LEAST_BATCH))
    near = [n for n in (below, 2 * below) if n <= context]
    fix = f"choose {' or '.join(map(str, near)) or _power_below(context)}"
    what = f"--batch {batch}"
    if batch < _LEAST_BATCH or batch & (batch - 1):
        raise OptionError(
            what, f"it is not {_LEAST_BATCH}, {2 * _LEAST_BATCH}, {_SAFE_BATCH}, ..", fix
        )
    if batch > context:
        raise OptionError(what, f"it is more than --context {context}", fix)


def check_states(states: Sequence[StateSpec], batch: int, name: str) -> None:
    """The caches of keys and values.

    Args:
        name: the model's.

    Raises:
        UnsupportedError: there are more than two, or a window is no multiple of `STEP`.
        OptionError: batches do not divide a window: one would lie across its end.
    """
    if len(states) > _MOST_STATES:
        raise UnsupportedError(
            name,
            f"its caches have {len(states)} lengths, and more than {_MOST_STATES} states fail on "
            "the Neural Engine",
            f"choose a --context of at most {min(s.window for s in states if s.window)}",
        )
    for state in states:
        window = state.window
        if window is None:
            continue
        if window % STEP:
            raise UnsupportedError(
                name,
                f"its sliding window of {window} is no multiple of {STEP}, as the Neural Engine "
                "wants of a cache",
                f"choose a --context of at most {window // STEP * STEP}",
            )
        if window % batch:
            raise OptionError(
                f"--batch {batch}",
                f"it does not divide the sliding window of {window}, past whose end a batch would "
                "be written",
                f"choose {window & -window}",  # the largest power of two that does
            )


def check_groups(flag: str, group: int, rows: Mapping[str, int]) -> None:
    """Groups of rows that share a table.

    Args:
        flag: the option as it was given, for messages.
        group: rows of a group; 0 for a whole tensor.
        rows: of every matrix, by its path.

    Raises:
        OptionError: groups do not divide the rows of a matrix.
    """
    if not group:
        return
    wrong = {path: n for path, n in rows.items() if n % group}
    if not wrong:
        return
    path, n = next(iter(wrong.items()))
    others = f", and of {len(wrong) - 1} others" if len(wrong) > 1 else ""
    sizes = [n for n in _divisors(math.gcd(*rows.values())) if n <= _MOST_NAMED]
    raise OptionError(
        flag,
        f"groups of {group} do not divide the {n} rows of {path}{others}",
        f"choose groups of {', '.join(map(str, sizes))} rows, or 0 for one table",
    )


def check_prefix(prefix: str) -> None:
    """With what names of files begin: runtimes take them apart again.

    Raises:
        OptionError: it holds what a runtime, a shell or a YAML file would take for something else.
    """
    plain = re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]{0,63}", prefix)
    held = next((part for part in _RESERVED if part in prefix), None)
    if plain and held is None and prefix.lower() not in _YAML_WORDS:
        return
    why = f"runtimes look for {held} in names of files" if held else "it is no plain word"
    raise OptionError(
        f"--prefix {shown(prefix)}",
        why,
        "choose one of letters, digits, - and _, like qwen or my-model",
    )


_YAML_WORDS = ("true", "false", "yes", "no", "on", "off", "null", "y", "n")


def check_package(name: str, nbytes: int, limit_mb: int) -> None:
    """A package that holds everything.

    Raises:
        OptionError: it is larger than the limit.
    """
    if nbytes > limit_mb * MIB:
        size = -(-nbytes // MIB)
        raise OptionError(
            "--monolithic",
            f"{name} would have {size} MiB, more than --max-chunk-mb {limit_mb}: the Neural Engine "
            "takes no such package",
            f"leave it out, choose fewer bits, or a limit of {size} to try",
        )


def notes(
    spec: DecoderSpec,
    context: int,
    batch: int,
    groups: Mapping[str, int],
    largest: int,
    argmax: bool = False,
    split_rotate: bool = False,
) -> list[str]:
    """What is taken, and may be slow or surprise.

    Args:
        groups: rows that share a table, by the option that says so; 0 for a whole tensor.
        largest: bytes of the largest package with layers.
    """
    found = []
    if largest > MAX_CHUNK_MB * MIB:
        found.append(
            f"a package of {-(-largest // MIB)} MiB: others report that the Neural Engine leaves "
            f"more than {MAX_CHUNK_MB} to the GPU; --chunk auto keeps below"
        )
    if batch > _SAFE_BATCH:
        found.append(
            f"--batch {batch}: others report that the Neural Engine fails above {_SAFE_BATCH}"
        )
    for flag, group in groups.items():
        if 0 < group < _LEAST_GROUP:
            found.append(f"{flag}: groups of {group} make many tables, which are slow; 8 or more")
    if argmax:
        found.append("--argmax: runtimes get the likeliest token alone, and cannot sample")
    if split_rotate:
        found.append(
            "--split-rotate: left out: no runtime reads such files as they are meant, and here all "
            "functions of a part share its weights"
        )
    if context % batch:
        found.append(
            f"--context {context}: no multiple of --batch {batch}: ANEMLL 0.3.4, which fills its "
            "last batch, may write past the end of the cache"
        )
    if context > 2048:
        found.append(f"--context {context}: every step takes time for all of it, used or not")
    mixers = [layer.mixer for layer in spec.layers if isinstance(layer.mixer, Attention)]
    for width in sorted({mixer.head_dim for mixer in mixers if mixer.head_dim % STEP}):
        found.append(f"heads of {width}: others report that states want a multiple of {STEP}")
    for tile in sorted({m.num_heads // m.num_kv_heads for m in mixers} - set(_TILES)):
        found.append(
            f"{tile} heads share keys: the Neural Engine may leave their repetition to the CPU"
        )
    return found


def _power_below(number: int) -> int:
    """The largest power of two that is not above a positive number."""
    return 1 << (number.bit_length() - 1)


def _divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]
