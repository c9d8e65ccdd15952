"""How byte-level tokenizers cut text before merging, by llama.cpp's names for it."""

from __future__ import annotations

from typing import NamedTuple


class PreTokenizer(NamedTuple):
    """How text is cut before merging.

    Attributes:
        patterns: regular expressions, applied one after the other; what each matches stands alone.
        nfc: whether text is normalised to NFC first.
        ignore_merges: whether a piece that is a token is taken whole.
        adds_bos: llama.cpp's default where the file does not state it.
    """

    patterns: tuple[str, ...]
    nfc: bool = False
    ignore_merges: bool = False
    adds_bos: bool = False


def _words(digits: str) -> str:
    """The expression of tiktoken's cl100k and its many heirs, which differ in how digits group."""
    return (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|" + digits + r"|"
        r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )


def _cased_words(suffix: str, digits: str) -> str:
    """The expression of tiktoken's o200k and of Tekken: words also part where case changes."""
    start, upper, lower = (
        r"[^\r\n\p{L}\p{N}]?",
        r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]",
        r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]",
    )
    return (
        f"{start}{upper}*{lower}+{suffix}|{start}{upper}+{lower}*{suffix}|{digits}|"
        r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )


_GPT2 = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_DIGITS_APART = PreTokenizer((r"\p{N}", _GPT2))
_QWEN2 = PreTokenizer((_words(r"\p{N}"),), nfc=True)
_LLAMA3 = PreTokenizer((_words(r"\p{N}{1,3}"),), ignore_merges=True, adds_bos=True)
_CL100K = PreTokenizer((_words(r"\p{N}{1,3}"),))

# tokenizer.ggml.pre -> pre-tokenizer. Facts: llama.cpp's src/llama-vocab.cpp.
PRE_TOKENIZERS = {
    "gpt-2": PreTokenizer((_GPT2,)),
    "default": PreTokenizer((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]")),
    "smollm": _DIGITS_APART,
    "starcoder": _DIGITS_APART,
    "refact": _DIGITS_APART,
    "qwen2": _QWEN2,
    "deepseek-r1-qwen": _QWEN2,
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "falcon3": _LLAMA3,
    "dbrx": _CL100K,
    "smaug-bpe": _CL100K,
    "gpt-4o": PreTokenizer((_cased_words(r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?", r"\p{N}{1,3}"),)),
    "tekken": PreTokenizer((_cased_words("", r"\p{N}"),), ignore_merges=True, adds_bos=True),
    "deepseek-coder": PreTokenizer(
        (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", r"[一-龥ࠀ-一가-퟿]+", r"\p{N}")
    ),
}
