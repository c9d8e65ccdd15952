"""`from litert_lm_cli import convert, plan, chat`: what notebooks use."""

from __future__ import annotations

import inspect
import os
import re
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import litert_lm_cli
from cli.main import build_parser
from cli.main import main as command
from converter.receipt import receipt_path
from litert_lm_cli import LiteRTLMError, OptionError, SourceError, chat, convert, plan
from tests.tiny_models import make_checkpoint, make_model

PAGE = Path(__file__).resolve().parent.parent / "README_MODELS.md"
COREML: dict[str, Any] = {"target": "coreml"}
# What only makes sense where somebody types.
TYPED = {
    "help", "debug", "dry_run", "json", "prompt", "stats", "handler", "tools", "yes", "schema",
    "restart", "only", "skip_check", "skip_anemll_dedup", "dynamic_prefill_slice", "no_lut",
}  # fmt: skip


@pytest.fixture(autouse=True)
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LITERT_LM_MODELS", str(tmp_path / "models"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("interface") / "tiny"
    make_checkpoint("llama", folder)
    return folder


@pytest.mark.parametrize(
    ("function", "name", "less"),
    [
        (convert, "convert", set()),
        (chat, "run", set()),
        (plan, "convert", {"force", "from_receipt", "engine", "offline", "check", "accept"}),
    ],
)
def test_names_and_defaults_are_those_of_the_command(
    function: Callable[..., Any], name: str, less: set[str]
) -> None:
    parsed = vars(build_parser().parse_args([name, "MODEL"]))
    options = {key: value for key, value in parsed.items() if key not in TYPED | less}
    found = {key: p.default for key, p in inspect.signature(function).parameters.items()}
    found.pop("progress", None)
    assert found.keys() == options.keys()
    del found["model"], options["model"]
    assert found == options


def test_the_example_of_the_documentation(
    work: Path, qwen3_tokenizer: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(qwen3_tokenizer)
    config = make_model("qwen3").config
    config.vocab_size = len(tokenizer)
    model = AutoModelForCausalLM.from_config(config)
    [example] = re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    names: dict[str, Any] = {"model": model, "tokenizer": tokenizer}
    capfd.readouterr()
    exec(example, names)
    path = work / "out/my-finetune.litertlm"
    assert names["path"].resolve() == path
    assert capfd.readouterr().out.startswith(f"{path.stat().st_size}\n")


def test_a_result_is_that_of_the_command(
    tiny: Path, work: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    seen: list[tuple[int, int]] = []
    path = convert(
        tiny,
        output_dir="ours",
        quantize="fp16",
        prefill_seq_len=64,
        kv_cache_max_len=128,
        kv_cache="int8",
        progress=lambda done, total: seen.append((done, total)),
        quiet=True,
    )
    said = capfd.readouterr()
    assert (said.out, said.err) == ("", "")
    assert seen == sorted(seen)
    assert seen[-1][0] == seen[-1][1] == seen[0][1]
    options = ["--quantize", "fp16", "--prefill-seq-len", "64", "--kv-cache-max-len", "128"]
    options += ["--kv-cache", "int8"]
    assert command(["convert", str(tiny), "--output-dir", "theirs", *options]) == 0
    assert path.read_bytes() == (work / "theirs/tiny.litertlm").read_bytes()
    again = convert(from_receipt=receipt_path(path), output_dir=work / "again")
    assert again.read_bytes() == path.read_bytes()


def test_packages_are_those_of_the_command(
    tiny: Path, work: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    chosen = {"context": np.int64(64), "batch": "16", "lut1": 8, "lut2": "none", "lut3": "6,tensor"}
    more = {"chunk": 1, "fp16_scale": 0.5, "argmax": True, "monolithic": False, "prefix": "my"}
    found = plan(tiny, **COREML, **chosen, **more, output_dir="ours")
    path = convert(tiny, **COREML, **chosen, **more, output_dir="ours", quiet=True)
    assert capfd.readouterr() == ("", "")
    assert path.resolve() == work / "ours"
    assert (found.output, found.context) == (str(path), 64)
    said = chosen | {"chunk": 1, "fp16-scale": 0.5, "prefix": "my"}
    options = [part for name, value in said.items() for part in (f"--{name}", str(value))]
    command_line = ["convert", str(tiny), "--target", "coreml", *options, "--argmax"]
    assert command([*command_line, "--output-dir", "theirs"]) == 0
    again = convert(from_receipt=receipt_path(path), output_dir=work / "again")
    for folder in (work / "theirs", again):
        for file in path.rglob("*"):
            if file.is_file():
                assert (folder / file.relative_to(path)).read_bytes() == file.read_bytes()
    assert convert(tiny, **COREML) == work / "models/local/tiny/coreml"


def test_what_exists_is_kept(tiny: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = convert(str(tiny))
    before = path.stat().st_mtime_ns
    assert convert(tiny) == path
    said = capfd.readouterr()
    assert said.out == ""
    assert f"keeping {path}" in said.err
    assert path.stat().st_mtime_ns == before
    convert(tiny, force=True)
    assert path.stat().st_mtime_ns > before


def test_a_plan_is_what_then_happens(tiny: Path) -> None:
    found = plan(tiny, prefill_seq_len="16,32", target="gpu")
    assert found.prefill_lengths == (16, 32)
    assert not Path(found.output).exists()
    path = convert(tiny, prefill_seq_len="16,32", target="gpu")
    assert (str(path), path.stat().st_size) == (found.output, found.as_json()["output_bytes"])


@pytest.mark.parametrize("length", ["128", np.int64(128)])
def test_a_number_may_be_a_text_or_of_numpy(length: Any, tiny: Path) -> None:
    found = plan(tiny, kv_cache_max_len=length, prefill_seq_len=np.int64(32))
    assert (found.kv_cache_length, found.prefill_lengths) == (128, (8, 16, 32))
    with chat(tiny, kv_cache_max_len=length, max_tokens=length, temperature="0") as assistant:
        assistant.ask("Hi")
        assert assistant.finish in ("stop", "length", "context")


def test_a_budget_of_memory(tiny: Path) -> None:
    assert plan(tiny, memory="1.5 GiB").memory_fit.memory_bytes == 3 << 29
    by_auto = plan(tiny, kv_cache_max_len="auto")
    assert (by_auto.kv_cache_length, by_auto.memory_fit.memory_bytes) == (4096, 3 * 10**9)
    assert plan(tiny, kv_cache_max_len=64, memory="800mb").kv_cache_length == 64


@pytest.mark.parametrize(
    ("call", "kind", "said"),
    [
        (lambda m: convert(), OptionError, "no model was named"),
        (lambda m: convert(object()), OptionError, "a object is not the name of a file or folder"),
        (lambda m: convert(m, quantize=8), OptionError, "--quantize 8, it is no text"),
        (lambda m: convert(m, quantize="int3"), OptionError, "int3"),
        (lambda m: convert(m, target="tpu"), OptionError, "use cpu or gpu or coreml"),
        (lambda m: chat(m, target="coreml"), OptionError, "use cpu or gpu"),
        (lambda m: convert(m, context=64), OptionError, "--context, is about --target coreml"),
        (lambda m: convert(m, argmax=True), OptionError, "--argmax, is about --target coreml"),
        (lambda m: convert(m, **COREML, batch=0), OptionError, "--batch, '0' is not a positive"),
        (lambda m: convert(m, **COREML, lut2=5), OptionError, "--lut2 5, "),
        (lambda m: convert(m, **COREML, lut2=[4, 8]), OptionError, "it is not BITS or BITS,GROUP"),
        (lambda m: convert(m, **COREML, prefix=7), OptionError, "--prefix 7, it is no text"),
        (lambda m: convert(m, **COREML, check=True), OptionError, "the engine runs no packages"),
        (lambda m: plan(m, **COREML, quantize="fp16"), OptionError, "choose tables with --lut1"),
        (lambda m: convert(m, clip="min"), OptionError, "use mse or max"),
        (lambda m: convert(m, engine="jax"), OptionError, "use direct or torch"),
        (lambda m: convert(m, kv_cache_max_len=0), OptionError, "--kv-cache-max-len, '0' is nei"),
        (lambda m: convert(m, kv_cache_max_len=1.5), OptionError, "'1.5' is neither"),
        (lambda m: convert(m, kv_cache_max_len="many"), OptionError, "'many' is neither"),
        (lambda m: convert(m, memory=3 * 10**9), OptionError, "'3000000000' is not an amount"),
        (lambda m: convert(m, memory="1MB"), OptionError, "--memory 0.01GB, tiny takes at least"),
        (lambda m: plan(m, **COREML, memory="3GB"), OptionError, "--memory, is not about --target"),
        (lambda m: convert(m, progress=5), OptionError, "progress=5, it cannot be called"),
        (lambda m: convert(m, prefill_seq_len=-1), OptionError, "--prefill-seq-len -1"),
        (lambda m: convert("nowhere/at/all"), SourceError, "nowhere/at/all"),
        (lambda m: convert(from_receipt="no.json"), SourceError, "no.json"),
        (lambda m: plan(m, lora="./none"), SourceError, "none"),
        (lambda m: plan(m, lora=["./a:2", Path("../b")]), SourceError, "--lora a, it has no"),
        (lambda m: plan(m, lora=["./none", 5]), OptionError, "a int is not the name"),
        (lambda m: plan(m, lora=5), OptionError, "a int is not the name"),
        (lambda m: chat(m, top_p=2), OptionError, "--top-p, '2' is not a number"),
        (lambda m: chat(m, max_tokens=True), OptionError, "--max-tokens, 'True' is not"),
        (lambda m: chat(m, system=5), OptionError, "--system 5, it is no text"),
        (lambda m: chat(m, backend="npu"), OptionError, "--backend npu"),
        (lambda m: chat(m, backend="gpu", threads=2), OptionError, "--threads, has no effect"),
        (lambda m: chat(m, raw=True, system="x"), OptionError, "--system"),
        (lambda m: chat(m, thinking=True), OptionError, "--thinking"),
    ],
)
def test_what_cannot_be_done_is_a_typed_error(
    call: Callable[[Path], object], kind: type[LiteRTLMError], said: str, tiny: Path
) -> None:
    with pytest.raises(LiteRTLMError) as caught:
        call(tiny)
    assert type(caught.value) is kind
    assert said in str(caught.value)
    os.write(2, b"")  # descriptor 2 is open: a chat that failed has given it back


def test_chats_side_by_side_in_a_thread(
    smollm2_bundle: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    said: list[Any] = []

    def work() -> None:
        first = chat(smollm2_bundle, temperature=0, max_tokens=16)
        second = chat(smollm2_bundle, temperature=0, max_tokens=4)
        said.append(first.ask("What is the capital of France?"))
        first.close()
        said.append([str(piece) for piece in second.stream("Tell me a story.")])
        said.append(second.finish)
        for piece in second.stream("Tell me a story."):
            said.append(piece.kind)
            break
        said.append(second.finish)
        second.close()
        second.close()

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert "Paris" in said[0]
    assert len("".join(said[1])) > len(said[1]) > 1
    assert said[2:] == ["length", "answer", "cancelled"]
    os.write(2, b"descriptor 2 is the real one again\n")
    print("and so is sys.stderr", file=sys.stderr)
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err == "descriptor 2 is the real one again\nand so is sys.stderr\n"


def test_a_chat_that_is_dropped_or_closed_is_gone(
    smollm2_bundle: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = chat(smollm2_bundle)
    del model
    os.write(2, b"nobody hides this\n")
    assert capfd.readouterr().err == "nobody hides this\n"
    with chat(smollm2_bundle) as model:
        pass
    with pytest.raises(ValueError, match="closed"):
        model.ask("Is anybody there?")


def test_everything_public_is_exported() -> None:
    assert litert_lm_cli.__version__
    for name in litert_lm_cli.__all__:
        assert getattr(litert_lm_cli, name) is not None
