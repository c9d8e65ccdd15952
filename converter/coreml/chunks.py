"""How many packages layers and head are cut into.

The calculator is ANEMLL's, figure by figure; what it estimates is then held against the packages'
exact bytes, which a plan knows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from converter.coreml.decoder_program import chunks, head_parts
from converter.decoder import DecoderSpec
from converter.errors import OptionError

DEFAULT_CHUNKS = 2
# MiB; others report that the Neural Engine leaves packages of 1.0 to 1.4 GB to the GPU.
MAX_CHUNK_MB = 950
MIB = 1 << 20
_MARGIN = 1.10  # ANEMLL's, for what is beside weights
# Rows of a head's part: the Neural Engine of an M3 or older takes no tensor that is wider.
MOST_ROWS = 16384
_MOST_PARTS = 128  # outputs of a head
_GROUPS = (1, 2, 4, 8, 16, 32, 64)


@dataclass(frozen=True)
class Figure:
    """What the calculator says of a number of chunks.

    Attributes:
        count: of chunks.
        layers: of the largest one.
        nbytes: that it may have.
    """

    count: int
    layers: int
    nbytes: int

    def __str__(self) -> str:
        packages = f"{self.count} chunk{'s' * (self.count > 1)}"
        return f"{packages}: {self.layers} layers, about {self.nbytes / MIB:.0f} MiB"


def layer_bytes(spec: DecoderSpec) -> list[int]:
    """Of each layer's weights in float16, norms and biases with them."""
    sizes = [0] * len(spec.layers)
    for path, shape in spec.weight_shapes():
        if path.startswith("layers."):
            size = 2
            for length in shape:
                size *= length
            sizes[int(path.split(".")[1])] += size
    return sizes


def figures(sizes: Sequence[int], bits: int, limit_mb: int) -> Iterator[Figure]:
    """The calculator: 1, 2, .. chunks, until the largest is within the limit.

    Args:
        sizes: `layer_bytes`.
        bits: of an index into a palette, or 16.
    """
    for count in range(1, len(sizes) + 1):
        largest = max(chunks(len(sizes), count), key=lambda which: sum(sizes[i] for i in which))
        nbytes = int(sum(sizes[i] for i in largest) * (bits / 16) * _MARGIN)
        yield Figure(count, len(largest), nbytes)
        if nbytes <= limit_mb * MIB:
            return


def settle_chunks(
    wanted: int | None,
    sizes: Sequence[int],
    bits: int,
    limit_mb: int | None,
    nbytes_of: Callable[[range], int],
) -> list[range]:
    """The layers of each chunk.

    Args:
        wanted: how many chunks; None for the least that the calculator and the exact bytes allow.
        sizes: `layer_bytes`.
        bits: of an index into a palette, or 16.
        limit_mb: MiB that a package may have; None for `MAX_CHUNK_MB` where `wanted` is None too,
            and for any number where it is not.
        nbytes_of: exact bytes of a package with these layers.

    Raises:
        OptionError: there are fewer layers, or a package is larger than the limit.
    """
    layers = len(sizes)
    limit = (limit_mb or MAX_CHUNK_MB) * MIB

    def largest(count: int) -> int:
        return max(map(nbytes_of, chunks(layers, count)))

    def fitting(start: int) -> int | None:
        return next((n for n in range(start, layers + 1) if largest(n) <= limit), None)

    if wanted is None:
        *_, last = figures(sizes, bits, limit // MIB)
        count = fitting(last.count)
        if count is None:
            raise OptionError(
                f"--max-chunk-mb {limit // MIB}",
                f"a package of one layer has {_mib(largest(layers))} MiB",
                f"choose {_mib(largest(layers))} or more",
            )
        return chunks(layers, count)
    if wanted > layers and wanted != DEFAULT_CHUNKS:
        raise OptionError(
            f"--chunk {wanted}", f"the network has {layers} layers", f"choose {layers} or fewer"
        )
    count = min(wanted, layers)
    nbytes = largest(count)
    if limit_mb is not None and nbytes > limit:
        more = fitting(count + 1)
        raise OptionError(
            f"--chunk {wanted}",
            f"the largest package has {_mib(nbytes)} MiB, more than --max-chunk-mb {limit_mb}",
            f"choose {f'--chunk {more}, --chunk auto' if more else '--chunk auto'} or a limit of "
            f"{_mib(nbytes)}",
        )
    return chunks(layers, count)


def settle_head(
    vocab_size: int, usual: int, group: int | None, argmax: bool, text: str = "--lut3"
) -> tuple[int, ...]:
    """Rows of each part of the head.

    Without argmax parts have one size, as ANEMLL's Swift runtime takes the first part's for all.
    With it runtimes read sizes from meta.yaml, so that parts may differ by a group.

    Args:
        usual: how many parts ANEMLL makes; as near to it as may be.
        group: rows that share a table; 0 for a whole part, None for no palette.
        text: the option that chose the group, for messages.

    Raises:
        OptionError: groups divide no such parts, or there are no parts of one size.
    """
    step = group or 1
    if argmax and vocab_size % step == 0 and step <= MOST_ROWS:
        units = vocab_size // step
        count = min(units, max(usual, -(-vocab_size // (MOST_ROWS // step * step))))
        return tuple(units * step for units in head_parts(units, count))
    equal = None if argmax else _equal_parts(vocab_size, usual, step)
    if equal is not None:
        return (vocab_size // equal,) * equal
    divides = [
        n
        for n in _GROUPS
        if (vocab_size % n == 0 if argmax else _equal_parts(vocab_size, usual, n) is not None)
    ]
    if divides:
        why = f"groups of {step} do not divide the head's {vocab_size} rows"
        if step > MOST_ROWS:
            why = f"a part of the head has at most {MOST_ROWS} rows"
        elif not argmax:
            why += ", cut into parts of one size"
        fix = f"choose a group of {' or '.join(map(str, divides[-3:]))}, or 0 for a table per part"
        if not argmax and vocab_size % step == 0 and step <= MOST_ROWS:
            fix += ", or --argmax"
        raise OptionError(text, why, fix)
    raise OptionError(
        f"a head of {vocab_size} rows",
        f"no {_MOST_PARTS} or fewer parts of one size have at most {MOST_ROWS} rows each, and "
        "runtimes that choose among all tokens need one size",
        "add --argmax, with which they are greedy"
        + (" and --lut3 none or a group of 0" if step > 1 and vocab_size % step else ""),
    )


def _equal_parts(vocab_size: int, usual: int, step: int) -> int | None:
    """The number nearest to `usual` that cuts the rows into parts of one size."""
    counts = [
        n
        for n in range(1, _MOST_PARTS + 1)
        if vocab_size % (n * step) == 0 and vocab_size // n <= MOST_ROWS
    ]
    return min(counts, key=lambda n: (abs(n - usual), -n), default=None)


def _mib(nbytes: int) -> int:
    """Rounded up."""
    return -(-nbytes // MIB)
