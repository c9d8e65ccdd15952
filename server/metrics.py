"""What a server counts, in Prometheus' text format."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field


@dataclass
class Metrics:
    """Totals since the start.

    Attributes:
        drafted_answers: for which tokens were drafted; `drafted_tokens` of them came in
            `drafted_pieces`, one for a call of the engine as a rule.
    """

    requests: Counter[tuple[str, int]] = field(default_factory=Counter)
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    answers: int = 0
    cancelled: int = 0
    first_token_seconds: float = 0.0
    decode_seconds: float = 0.0
    drafted_answers: int = 0
    drafted_tokens: int = 0
    drafted_pieces: int = 0

    def text(self, crashes: int, now: Mapping[str, float]) -> str:
        """All of it.

        Args:
            crashes: of engines, each of which cost an answer.
            now: what is not a total: how many wait, whether a model is loaded.
        """
        return "\n".join([*self._lines(crashes, now), ""])

    def _lines(self, crashes: int, now: Mapping[str, float]) -> Iterator[str]:
        yield "# TYPE litert_lm_requests_total counter"
        for (path, status), count in sorted(self.requests.items()):
            yield f'litert_lm_requests_total{{path="{path}",status="{status}"}} {count}'
        totals = {
            "prompt_tokens": self.prompt_tokens,
            "cached_tokens": self.cached_tokens,
            "completion_tokens": self.completion_tokens,
            "answers": self.answers,
            "cancelled": self.cancelled,
            "crashes": crashes,
            "first_token_seconds": self.first_token_seconds,
            "decode_seconds": self.decode_seconds,
            "drafted_answers": self.drafted_answers,
            "drafted_tokens": self.drafted_tokens,
            "drafted_pieces": self.drafted_pieces,
        }
        for name, value in totals.items():
            yield f"# TYPE litert_lm_{name}_total counter"
            yield f"litert_lm_{name}_total {value:g}"
        for name, value in now.items():
            yield f"# TYPE litert_lm_{name} gauge"
            yield f"litert_lm_{name} {value:g}"
