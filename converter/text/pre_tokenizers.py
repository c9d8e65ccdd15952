"""How byte-level tokenizers cut text before merging, by llama.cpp's names for it."""

from __future__ import annotations

from collections.abc import Sequence
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


_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_BLANKS = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_LETTERS = r"[^\r\n\p{L}\p{N}]?\p{L}+"


def _words(digits: str) -> str:
    """The expression of tiktoken's cl100k and its many heirs, which differ in how digits group."""
    return rf"{_CONTRACTIONS}|{_LETTERS}|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_BLANKS}"


def _cased_words(suffix: str, digits: str, but: str = "", line_ends: str = r"\r\n/") -> str:
    """The expression of tiktoken's o200k and of Tekken: words also part where case changes.

    Args:
        suffix: what may end a word, as English contractions do.
        but: taken from the letters, in Oniguruma's words for a difference of sets.
        line_ends: characters that marks take along.
    """
    start = r"[^\r\n\p{L}\p{N}]?"
    upper = rf"[\p{{Lu}}\p{{Lt}}\p{{Lm}}\p{{Lo}}\p{{M}}{but}]"
    lower = rf"[\p{{Ll}}\p{{Lm}}\p{{Lo}}\p{{M}}{but}]"
    return (
        f"{start}{upper}*{lower}+{suffix}|{start}{upper}+{lower}*{suffix}|{digits}|"
        rf" ?[^\s\p{{L}}\p{{N}}]+[{line_ends}]*|{_BLANKS}"
    )


def _deepseek_words(marks: str) -> str:
    """The main expression of DeepSeek V3 and its heirs; `marks` is what marks and blanks do."""
    return (
        r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|"
        rf"[^\r\n\p{{L}}\p{{P}}\p{{S}}]?[\p{{L}}\p{{M}}]+| ?[\p{{P}}\p{{S}}]+{marks}|\s+(?!\S)|\s+"
    )


_GPT2 = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_CHINESE_AND_KANA = r"[\x{4E00}-\x{9FA5}\x{3040}-\x{30FF}]+"
_CHINESE_TO_HANGUL = r"[\x{4E00}-\x{9FA5}\x{800}-\x{4E00}\x{AC00}-\x{D7FF}]+"
_O200K = _cased_words(f"{_CONTRACTIONS}?", r"\p{N}{1,3}")
_GPT4O = PreTokenizer((_O200K,))
_PLAIN_GPT2 = PreTokenizer((_GPT2,))
_DIGITS_APART = PreTokenizer((r"\p{N}", _GPT2))
_SINGLE_DIGITS = PreTokenizer((_words(r"\p{N}"),))
_QWEN2 = _SINGLE_DIGITS._replace(nfc=True)
_CL100K = PreTokenizer((_words(r"\p{N}{1,3}"),))
_LLAMA3 = _CL100K._replace(ignore_merges=True, adds_bos=True)
_DEEPSEEK3 = PreTokenizer(
    (r"\p{N}{1,3}", _CHINESE_AND_KANA, _deepseek_words(r"[\r\n]*|\s*[\r\n]+"))
)
_BLOOM = PreTokenizer((r" ?[^(\s|.,!?\x{2026}\x{3002}\x{FF0C}\x{3001}\x{964}\x{6D4}\x{60C})]+",))
_BAILING = PreTokenizer(
    (
        rf"'(?i:[sdmt]|ll|ve|re)|{_LETTERS}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|"
        r"\s*[\r\n]|\s+(?!\S)|\s+",
    )
)
_TINY_AYA = PreTokenizer((r"\d{1,3}(?=(?:\d{3})*\b)", _O200K))
# Letters with case, as Unicode had them when DeepSeek LLM was made.
_CASED = (
    r"A-Za-z\x{B5}\x{C0}-\x{D6}\x{D8}-\x{F6}\x{F8}-\x{1BA}\x{1BC}-\x{1BF}\x{1C4}-\x{293}"
    r"\x{295}-\x{2AF}\x{370}-\x{373}\x{376}\x{377}\x{37B}-\x{37D}\x{37F}\x{386}\x{388}-\x{38A}"
    r"\x{38C}\x{38E}-\x{3A1}\x{3A3}-\x{3F5}\x{3F7}-\x{481}\x{48A}-\x{52F}\x{531}-\x{556}"
    r"\x{10A0}-\x{10C5}\x{13A0}-\x{13F5}\x{13F8}-\x{13FD}\x{1C90}-\x{1CBA}\x{1CBD}-\x{1CBF}"
    r"\x{1D00}-\x{1D2B}\x{1D6B}-\x{1D77}\x{1D79}-\x{1D9A}\x{1E00}-\x{1F15}\x{1F18}-\x{1F1D}"
    r"\x{1F20}-\x{1F45}\x{1F48}-\x{1F4D}\x{1F50}-\x{1F57}\x{1F59}\x{1F5B}\x{1F5D}"
    r"\x{1F5F}-\x{1F7D}\x{1F80}-\x{1FB4}\x{1FB6}-\x{1FBC}\x{1FBE}\x{1FC2}-\x{1FC4}"
    r"\x{1FC6}-\x{1FCC}\x{1FD0}-\x{1FD3}\x{1FD6}-\x{1FDB}\x{1FE0}-\x{1FEC}\x{1FF2}-\x{1FF4}"
    r"\x{1FF6}-\x{1FFC}\x{2102}\x{2107}\x{210A}-\x{2113}\x{2115}\x{2119}-\x{211D}\x{2124}"
    r"\x{2126}\x{2128}\x{212A}-\x{212D}\x{212F}-\x{2134}\x{2139}\x{213C}-\x{213F}"
    r"\x{2145}-\x{2149}\x{214E}\x{2183}\x{2184}\x{2C00}-\x{2C7B}\x{2C7E}-\x{2CE4}"
    r"\x{2CEB}-\x{2CEE}\x{2CF2}\x{2CF3}\x{A640}-\x{A66D}\x{A680}-\x{A69B}\x{A722}-\x{A76F}"
    r"\x{A771}-\x{A787}\x{A78B}-\x{A78E}\x{AB70}-\x{ABBF}\x{FB00}-\x{FB06}\x{FB13}-\x{FB17}"
    r"\x{FF21}-\x{FF3A}\x{FF41}-\x{FF5A}\x{10400}-\x{1044F}\x{104B0}-\x{104D3}"
    r"\x{104D8}-\x{104FB}\x{10C80}-\x{10CB2}\x{10CC0}-\x{10CF2}\x{118A0}-\x{118DF}"
    r"\x{1E900}-\x{1E943}"
)

# tokenizer.ggml.pre -> pre-tokenizer: every name that llama.cpp knows for byte-level vocabularies.
# Facts: llama.cpp's src/llama-vocab.cpp; where it approximates an expression for its own
# matcher, the one of the model's tokenizer.json.
PRE_TOKENIZERS = {
    "default": PreTokenizer((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]")),
    **dict.fromkeys(
        (
            "gpt-2",
            "phi-2",
            "jina-es",
            "jina-de",
            "jina-v1-en",
            "jina-v2-es",
            "jina-v2-de",
            "jina-v2-code",
            "roberta-bpe",
            "gigachat",
            "a.x-4.0",
            "mellum",
            "modern-bert",
            "mpt",
            "olmo",
            "jais",
            "trillion",
            "granite-docling",
            "exaone4",
        ),
        _PLAIN_GPT2,
    ),
    **dict.fromkeys(
        (
            "smollm",
            "starcoder",
            "refact",
            "command-r",
            "codeshell",
            "exaone",
            "minerva-7b",
            "mellum2",
        ),
        _DIGITS_APART,
    ),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "kormo", "f2llmv2", "megrez"), _QWEN2),
    **dict.fromkeys(("stablelm2", "hunyuan", "solar-open", "grok-2"), _SINGLE_DIGITS),
    **dict.fromkeys(
        (
            "llama-bpe",
            "llama3",
            "llama-v3",
            "falcon3",
            "falcon-h1",
            "pixtral",
            "midm-2.0",
            "lfm2",
            "jina-v5-nano",
        ),
        _LLAMA3,
    ),
    **dict.fromkeys(("dbrx", "smaug-bpe", "glm4", "chatglm-bpe"), _CL100K),
    **dict.fromkeys(("gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"), _GPT4O),
    **dict.fromkeys(("deepseek-v3", "hunyuan-dense", "joyai-llm", "hy_v4"), _DEEPSEEK3),
    **dict.fromkeys(("bloom", "gpt3-finnish", "poro-chat"), _BLOOM),
    **dict.fromkeys(("bailingmoe", "bailingmoe2", "llada-moe"), _BAILING),
    **dict.fromkeys(("tiny_aya", "cohere2moe"), _TINY_AYA),
    "granite-embed-multi-97m": _GPT4O._replace(ignore_merges=True),
    "tekken": PreTokenizer((_cased_words("", r"\p{N}"),), ignore_merges=True, adds_bos=True),
    "qwen35": PreTokenizer(
        (
            rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}|"
            rf" ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_BLANKS}",
        ),
        nfc=True,
    ),
    "deepseek-llm": PreTokenizer(
        (
            r"[\r\n]",
            rf"\s?[{_CASED}]+",
            r"\s?[!-/:-~\x{FF01}-\x{FF0F}\x{FF1A}-\x{FF5E}\x{2018}-\x{201F}\x{3000}-\x{3002}]+",
            r"\s+$",
            _CHINESE_TO_HANGUL,
            r"\p{N}+",
        )
    ),
    "deepseek-coder": PreTokenizer(
        (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _CHINESE_TO_HANGUL, r"\p{N}")
    ),
    "spark2_5": PreTokenizer(
        (r"\p{N}{1,3}", _CHINESE_AND_KANA, _deepseek_words(r"|[\r\n]"), r"\p{N}")
    ),
    "youtu": PreTokenizer(
        (
            r"[\x{AC00}-\x{D7A3}\x{3131}-\x{318E}]+|"
            r"[\x{FF01}\x{2026}\x{201C}\x{201D}\x{2018}\x{2019}\x{2014}\x{FF1A}\x{FF1B}\x{FF0C}"
            r"\x{3001}-\x{303F}\x{FE30}-\x{FE4F}]+|[\x{3105}-\x{312F}]+|" + _CHINESE_AND_KANA,
            _cased_words(f"{_CONTRACTIONS}?", r"\p{N}"),
        ),
        ignore_merges=True,
    ),
    "afmoe": PreTokenizer(
        (
            r"\p{N}{1,3}(?=(?:\p{N}{3})*(?!\p{N}))",  # threes, counted from the last digit
            r"[\x{4E00}-\x{9FFF}\x{3400}-\x{4DBF}\x{F900}-\x{FAFF}\x{3040}-\x{30FF}\x{FF65}-\x{FF9F}"
            r"\x{2F00}-\x{2FDF}\x{0E40}-\x{0EFF}\x{1780}-\x{17FF}\x{1000}-\x{109F}\x{AA60}-\x{AA7F}"
            r"\x{A9E0}-\x{A9FF}\x{AC00}-\x{D7AF}\x{1100}-\x{11FF}]+",
            _deepseek_words(r"[\r\n]*|\s*[\r\n]+"),
        )
    ),
    "falcon": PreTokenizer((r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, r"[0-9][0-9][0-9]")),
    "viking": PreTokenizer((*_BLOOM.patterns, r"\p{N}")),
    "superbpe": PreTokenizer((r"\p{N}+", r"(?=(\d{3})+(?!\d))")),
    "seed-coder": PreTokenizer(
        (rf"{_CONTRACTIONS}|{_LETTERS}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{_BLANKS}",)
    ),
    "ufakzeka": PreTokenizer((rf"{_LETTERS}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_BLANKS}",)),
    "laguna": PreTokenizer((r"[^\n]+|[\n]+", _words(r"\p{N}"))),
    "exaone-moe": PreTokenizer(
        (
            rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?(?:\p{{L}}\p{{M}}*(?: \p{{L}}\p{{M}}*)*)+|"
            r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+",
        )
    ),
    "minicpm5": PreTokenizer((r"\p{N}{1,3}", _words(r"\p{N}+")), ignore_merges=True),
    "jais-2": PreTokenizer(
        (
            rf"{_CONTRACTIONS}|{_LETTERS}|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|"
            + "".join(rf"\s{{{n}}}(?!\S)|" for n in (512, 256, 128, 64, 32, 16, 8, 4))
            + r"\s{1,2}(?!\S)|\s",
        )
    ),
    "kimi-k2": PreTokenizer(
        (r"\p{Han}+|" + _cased_words(f"{_CONTRACTIONS}?", r"\p{N}{1,3}", r"&&[^\p{Han}]", r"\r\n"),)
    ),
    "chameleon": PreTokenizer(
        (
            r"<sentinel:[0-9]+>",
            r"(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z",
            r"([\t\n]|    |  )",
            r"\p{N}",
            r"[\p{P}!-/:-@\[-`{-~]",
            _GPT2,
        ),
        adds_bos=True,
    ),
}

# Their tokens are of raw text, and not of GPT-2's letters for bytes.
RAW_TEXT = ("gemma4", "granite-embed-multi-311m", "sarvam-moe", "whitespace")

_DEEPSEEK_START = "<\uff5cbegin\u2581of\u2581sentence\uff5c>"
# Files from before llama.cpp wrote tokenizer.ggml.pre, by a token's text and its id.
_KNOWN_IDS = {
    ("<|im_start|>", 151644): "qwen2",
    ("<|begin_of_text|>", 128000): "llama-bpe",
    (_DEEPSEEK_START, 0): "deepseek-v3",
    (_DEEPSEEK_START, 32013): "deepseek-coder",
    (_DEEPSEEK_START, 100000): "deepseek-llm",
    (_DEEPSEEK_START, 128000): "llama-bpe",
    (_DEEPSEEK_START, 151646): "deepseek-r1-qwen",
}
_KNOWN_ARCHITECTURES = {"qwen2": "qwen2", "qwen3": "qwen2", "qwen3moe": "qwen2"}


def guess_pre_tokenizer(architecture: str, tokens: Sequence[str]) -> str | None:
    """The name that a file without `tokenizer.ggml.pre` should have; None where nothing tells.

    Args:
        architecture: `general.architecture`.
        tokens: text of every id.
    """
    for (text, token_id), name in _KNOWN_IDS.items():
        if token_id < len(tokens) and tokens[token_id] == text:
            return name
    return _KNOWN_ARCHITECTURES.get(architecture)
