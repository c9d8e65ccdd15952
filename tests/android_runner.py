"""What the engine's Android programs do, done by the same engine's package for Python.

The programs themselves are for Android. These take the same options, print the same to stdout and
stderr, and end as they do: runtime/engine/litert_lm_main.cc, litert_lm_advanced_main.cc (with
litert_lm_lib.cc) and io_types.cc of google-ai-edge/LiteRT-LM. What they print was compared with the
output that others published of the real ones.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
_FLAGS = ("backend", "input_prompt", "input_prompt_file", "model_path")
_SHARED_FLAGS = (  # which litert_lm_main lists and does not read
    "async", "benchmark", "benchmark_decode_tokens", "benchmark_prefill_tokens",
    "max_output_tokens", "num_cpu_threads",
)  # fmt: skip
_ADVANCED_FLAGS = ("use_session",)


def write_program(path: Path, *, advanced: bool) -> Path:
    """One of the two, as a file that a shell can start."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        f"#!{sys.executable}\nimport sys\nsys.path.insert(0, {str(ROOT)!r})\n"
        f"from tests.android_runner import main\nmain(advanced={advanced})\n"
    )
    return path


def main(*, advanced: bool) -> None:
    known = (*_FLAGS, *_SHARED_FLAGS, *(_ADVANCED_FLAGS if advanced else ()))
    if "--helpfull" in sys.argv:
        print(f"{sys.argv[0]}: Warning: SetProgramUsageMessage() never called\n\n  Flags:")
        for name in known:
            print(f"    --{name} (What it is for.); default: ;")
        sys.exit(1)
    flags: dict[str, str] = {}
    for argument in sys.argv[1:]:
        name, _, value = argument.removeprefix("--").partition("=")
        if name not in known:
            print(f"ERROR: Unknown command line flag '{name}'", file=sys.stderr)
            sys.exit(1)
        if advanced or name not in _SHARED_FLAGS:
            flags[name] = value or "true"
    _log(f"litert_lm_main.cc:60] Choose backend: {flags['backend']}")
    if flags["backend"] == "gpu":
        print(
            "WARNING: [gpu_registry.cc:187] GPU accelerator could not be loaded and registered.",
            file=sys.stderr,
        )
    if "benchmark_prefill_tokens" in flags:
        _benchmark(flags)
    else:
        _answer(flags, advanced)


def _answer(flags: dict[str, str], advanced: bool) -> None:
    import litert_lm

    prompt = Path(flags["input_prompt_file"]).read_bytes().decode()
    threads = int(flags.get("num_cpu_threads", 2))
    try:
        engine = litert_lm.Engine(
            flags["model_path"],
            backend=litert_lm.Backend.CPU(thread_count=threads),
            enable_benchmark=True,
        )
    except RuntimeError as error:
        if advanced:
            _log(f"litert_lm_advanced_main.cc:390] Failed to run litert_lm: INTERNAL: {error}", "E")
            os._exit(13)
        check = f"Check failed: MainHelper(argc, argv) is OK (INTERNAL: {error})"
        _log(f"litert_lm_main.cc:147] {check}", "F")
        print(
            "*** Check failure stack trace: ***\n    @     0x5581d0a9", file=sys.stderr, flush=True
        )
        os.abort()
    with engine, engine.create_conversation() as conversation:
        if not advanced:
            print(f"input_prompt: {prompt}", flush=True)
        most = flags.get("max_output_tokens")
        options = {} if most is None else {"max_output_tokens": int(most)}
        for message in conversation.send_message_async(prompt, **options):
            print(str(message), end="", flush=True)
        print(flush=True)
        info = conversation.get_benchmark_info()
        if not advanced:
            print(f"\n{_report(info)}", flush=True)
        elif "benchmark" in flags:
            _log(f"litert_lm_lib.cc:339] {_report(info)}")
    os._exit(0)


def _benchmark(flags: dict[str, str]) -> None:
    import litert_lm

    benchmark = litert_lm.Benchmark(
        flags["model_path"],
        backend=litert_lm.Backend.CPU(thread_count=int(flags.get("num_cpu_threads", 2))),
        prefill_tokens=int(flags["benchmark_prefill_tokens"]),
        decode_tokens=int(flags["benchmark_decode_tokens"]),
    )
    _log(f"litert_lm_lib.cc:339] {_report(benchmark.run())}")
    os._exit(0)


def _log(text: str, severity: str = "I") -> None:
    print(f"{severity}0000 00:00:1732646400.000000    4711 {text}", file=sys.stderr, flush=True)


def _report(info: Any) -> str:
    """As BenchmarkInfo's operator<<."""
    rule = "-" * 50
    turns = []
    for kind, tokens, rate in (
        ("Prefill", info.last_prefill_token_count, info.last_prefill_tokens_per_second),
        ("Decode", info.last_decode_token_count, info.last_decode_tokens_per_second),
    ):
        turns += [
            f"  {kind} Turns (Total 1 turns):",
            f"    {kind} Turn 1: Processed {tokens} tokens in {tokens / rate:.9g}s duration.",
            f"      {kind} Speed: {rate:.2f} tokens/sec.",
            rule,
        ]
    return "\n".join(
        [
            "BenchmarkInfo:",
            "  Init Phases (1):",
            f"    - Init Total: {info.init_time_in_second * 1000:.2f} ms",
            rule,
            f"  Time to first token: {info.time_to_first_token_in_second:.2f} s",
            rule,
            *turns,
            rule,
        ]
    )
