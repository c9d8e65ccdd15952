"""One run of the engine's own benchmark, in this process.

    python -m benchmarks.engine BUNDLE PROMPT_TOKENS NEW_TOKENS

Its last line on stderr is one JSON object: tokens per second of prefill and decode.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile

import litert_lm

THREADS = 2


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundle")
    parser.add_argument("prompt", type=int)
    parser.add_argument("new", type=int)
    args = parser.parse_args()
    litert_lm.set_min_log_severity(litert_lm.LogSeverity.ERROR)
    with tempfile.TemporaryDirectory(prefix="litert-lm-bench-") as cache:
        info = litert_lm.Benchmark(
            args.bundle,
            backend=litert_lm.Backend.CPU(thread_count=THREADS),
            prefill_tokens=args.prompt,
            decode_tokens=args.new,
            cache_dir=cache,
        ).run()
    counts = info.last_prefill_token_count, info.last_decode_token_count
    if counts != (args.prompt, args.new):
        # On an internal error the engine reports zeros, and no error.
        sys.exit(f"asked for {args.prompt} and {args.new} tokens, the engine made {counts}")
    figures = {
        "prefill": info.last_prefill_tokens_per_second,
        "decode": info.last_decode_tokens_per_second,
    }
    print(json.dumps(figures), file=sys.stderr)


if __name__ == "__main__":
    main()
