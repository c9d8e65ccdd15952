"""How far one bundle's logits are from another's of the same checkpoint.

    venv/bin/python -m benchmarks.divergence int8.litertlm --against fp32.litertlm

Both graphs run in the ai-edge-litert interpreter, with the kernels that the engine uses, over the
same text; each position sees the true tokens before it. The last line is one JSON document.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from benchmarks.measure import machine
from converter.inspection import read_bundle
from tests.interpreter import GraphRunner

TEXT = (
    "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
    "<|im_end|>\n<|im_start|>user\nWhat is the capital of France?<|im_end|>\n"
    "<|im_start|>assistant\nThe capital of France is Paris.<|im_end|>\n"
)


def tokens_of(bundle: Path, text: str) -> list[int]:
    """The engine's own tokens of a text."""
    import litert_lm

    litert_lm.set_min_log_severity(litert_lm.LogSeverity.ERROR)
    with litert_lm.Engine(str(bundle), cache_dir=":nocache") as engine:
        start = read_bundle(bundle).metadata.start_token.token_ids.ids
        return [*start, *engine.tokenize(text)]


def log_probabilities(bundle: Path, tokens: list[int]) -> np.ndarray:
    """Of every next token at every position, `(len(tokens), vocabulary)`."""
    runner = GraphRunner(bundle)
    logits = np.stack([runner.decode(token, i) for i, token in enumerate(tokens)])
    logits = logits.astype(np.float64)
    logits -= logits.max(axis=1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--against", type=Path, required=True, metavar="REFERENCE")
    parser.add_argument("--text", type=Path, metavar="FILE", help="default: a short chat")
    args = parser.parse_args()
    text = args.text.read_text("utf-8") if args.text else TEXT
    tokens = tokens_of(args.model, text)
    ours = log_probabilities(args.model, tokens)
    reference = log_probabilities(args.against, tokens)
    divergence = (np.exp(reference) * (reference - ours)).sum(axis=1)
    document = {
        "benchmark": "divergence",
        "machine": machine("ai-edge-litert", "litert-lm-api"),
        "tokens": len(tokens),
        "kl_mean": float(divergence.mean()),
        "kl_max": float(divergence.max()),
        "top1_agreement": float((ours.argmax(axis=1) == reference.argmax(axis=1)).mean()),
    }
    print(f"KL divergence: mean {document['kl_mean']:.4f}, largest {document['kl_max']:.4f}")
    print(f"top-1 agreement: {document['top1_agreement']:.1%} of {len(tokens)} positions")
    print(json.dumps(document))


if __name__ == "__main__":
    main()
