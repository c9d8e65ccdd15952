"""Real weights through the real engine: our text against transformers', and the official client.

transformers reads the same GGUF with its own code (names, rotary permutation, dequantisation), so
that nothing of ours stands on both sides.
"""

from __future__ import annotations

import functools
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from cli.obtain import open_checkpoint
from converter.base import ModelConverter
from converter.litertlm.inspection import read_bundle
from converter.options import ConvertOptions
from converter.text.tokenizer import load_tokenizer
from converter.tflite.kv_cache import Target
from converter.weights.quantization import SCHEMES
from runner.engine import Model
from runner.evaluation import TEXT, measure_perplexity
from tests.tiny_models import settle_torch

TOKENS = 32
QUESTION = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"


@contextmanager
def engine(bundle: Path) -> Iterator[Any]:
    import litert_lm

    litert_lm.set_min_log_severity(litert_lm.LogSeverity.ERROR)
    opened = litert_lm.Engine(str(bundle), cache_dir=":nocache")
    try:
        yield opened
    finally:
        opened.close()


def greedy(bundle: Path, prompt: str, count: int) -> str:
    """The engine's own continuation, without a template."""
    import litert_lm

    with engine(bundle) as opened:
        session = opened.create_session(
            apply_prompt_template=False,
            max_output_tokens=count,
            sampler_config=litert_lm.SamplerConfig(top_k=1, temperature=1.0),
        )
        session.run_prefill([prompt])
        [text] = session.run_decode().texts
        session.close()
        return text


def expected(gguf: Path, prompt: str, count: int) -> str:
    """transformers' continuation in float32, without the token that ends it."""
    import gguf as gguf_library
    import torch
    from transformers import AutoModelForCausalLM

    settle_torch()
    with open_checkpoint(gguf) as checkpoint:
        tokenizer = load_tokenizer(checkpoint)
    # transformers makes the same map of names for every module, which takes most of its time.
    made_once = functools.cache(gguf_library.get_tensor_name_map)
    with mock.patch.object(gguf_library, "get_tensor_name_map", made_once):
        model = AutoModelForCausalLM.from_pretrained(
            gguf.parent, gguf_file=gguf.name, dtype=torch.float32
        )
    start = [tokenizer.bos_token_id] if tokenizer.adds_bos else []
    ids = [*start, *tokenizer.encode(prompt)]
    with torch.no_grad():
        output = model.generate(torch.tensor([ids]), max_new_tokens=count, do_sample=False)
    tokens = output[0, len(ids) :].tolist()
    return tokenizer.decode([t for t in tokens if t not in tokenizer.eos_token_ids])


def test_smollm2_in_fp32_says_what_transformers_says(
    smollm2_gguf: Path, smollm2_fp32_bundle: Path
) -> None:
    prompt = QUESTION.format("Write a short story about a fox.")
    text = greedy(smollm2_fp32_bundle, prompt, TOKENS)
    assert len(text.split()) > TOKENS // 2  # it did not stop early
    assert text == expected(smollm2_gguf, prompt, TOKENS)


def test_gemma3_in_fp32_says_what_transformers_says(
    gemma3_gguf: Path, gemma3_fp32_bundle: Path
) -> None:
    prompt = "The history of the city of Rome begins"
    text = greedy(gemma3_fp32_bundle, prompt, TOKENS)
    assert len(text.split()) > TOKENS // 2
    assert text == expected(gemma3_gguf, prompt, TOKENS)


def test_a_ring_scores_and_continues_as_the_plain_graph_does(
    gemma3_gguf: Path, tmp_path: Path
) -> None:
    """Past the window of 512 and the ring of 640, over several prefills, in the engine."""
    import litert_lm

    text = Path(__file__).parent.parent.joinpath("docs/chat-templates.md").read_text()
    results = []
    for target in Target:
        bundle = tmp_path / f"{target.value}.litertlm"
        options = ConvertOptions(quantize="fp32", prefill_lengths=(64, 256), target=target)
        with open_checkpoint(gemma3_gguf) as checkpoint:
            ModelConverter(checkpoint, "gemma", options).convert(bundle)
        with engine(bundle) as opened:
            assert 800 < len(opened.tokenize(text[:3200])) < 1100
            session = opened.create_session(apply_prompt_template=False)
            session.run_prefill([text[:3200]])
            [score] = session.run_text_scoring([text[3200:3400]]).scores
            session.close()
            session = opened.create_session(
                apply_prompt_template=False,
                max_output_tokens=8,
                sampler_config=litert_lm.SamplerConfig(top_k=1, temperature=1.0),
            )
            said = []
            for start in range(0, 3000, 600):
                session.run_prefill([text[start : start + 600]])
                said += session.run_decode().texts
            session.close()
        results.append((score, said))
    (score, said), (plain_score, plain_said) = results
    assert score == pytest.approx(plain_score, rel=1e-5)
    assert score < -10  # so many characters cannot be certain
    assert said == plain_said


def test_smollm2_in_int8_knows_paris_and_stops(smollm2_bundle: Path) -> None:
    text = greedy(smollm2_bundle, QUESTION.format("What is the capital of France?"), TOKENS)
    assert text == "The capital of France is Paris."


def test_gemma3_in_int8_continues_sensibly(gemma3_bundle: Path) -> None:
    text = greedy(gemma3_bundle, "Water boils at a temperature of 100 degrees", 12)
    assert "Celsius" in text or "C" in text.split()[:3]


def test_qwen3_shape_runs_stops_and_renders_its_third_turn(qwen3_bundle: Path) -> None:
    """Random weights say nothing, but everything around them must work."""
    metadata = read_bundle(qwen3_bundle).metadata
    assert not metadata.HasField("start_token")
    assert {token.token_ids.ids[0] for token in metadata.stop_tokens} == {151645, 151643}
    assert metadata.llm_model_type.WhichOneof("model_type") == "qwen3"
    assert [channel.channel_name for channel in metadata.channels] == ["thought"]
    with engine(qwen3_bundle) as opened:
        conversation = opened.create_conversation(max_output_tokens=4)
        counts = []
        for turn in ("one", "two", "three"):
            rendered = conversation.render_message_to_string(turn)
            assert rendered.endswith(f"<|im_start|>user\n{turn}<|im_end|>\n<|im_start|>assistant\n")
            conversation.send_message(turn)
            counts.append(conversation.token_count)
        assert counts == sorted(set(counts))
        conversation.close()


def _official_client(*arguments: str) -> str:
    script = shutil.which("litert-lm", path=str(Path(sys.executable).parent))
    assert script is not None, "run ./setup --dev: the official client is missing"
    done = subprocess.run(
        [script, *arguments], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("fixture", ["smollm2_bundle", "qwen3_bundle", "gemma3_bundle"])
def test_official_client_describes_our_files(fixture: str, request: pytest.FixtureRequest) -> None:
    report = _official_client("describe", str(request.getfixturevalue(fixture)))
    assert "Max Context Tokens:     1280" in report
    assert f"Supports Thinking:      {'YES' if 'qwen3' in fixture else 'NO'}" in report


def test_official_client_runs_our_files(smollm2_bundle: Path, tmp_path: Path) -> None:
    bundle = shutil.copy(smollm2_bundle, tmp_path)  # the client leaves its caches beside the model
    answer = _official_client("run", bundle, "--prompt", "Why is the sky blue?", "--top-k", "1")
    assert "light" in answer


def test_gemma3_with_the_it_template_chats(
    gemma3_gguf: Path, gemma3_tokenizer: Path, tmp_path: Path
) -> None:
    """A SentencePiece vocabulary and a chat template, in the engine and in the official client.

    The weights are the base model's, so what it says is not looked at.
    """
    from transformers import AutoTokenizer

    source = AutoTokenizer.from_pretrained(gemma3_tokenizer)
    gguf, bundle = tmp_path / "gemma-3-270m-it.gguf", tmp_path / "gemma.litertlm"
    rewrite = [sys.executable, "-m", "gguf.scripts.gguf_new_metadata", "--chat-template"]
    subprocess.run([*rewrite, source.chat_template, gemma3_gguf, gguf], check=True)
    with open_checkpoint(gguf) as checkpoint:
        ModelConverter(checkpoint, "gemma", ConvertOptions()).convert(bundle)
    metadata = read_bundle(bundle).metadata
    assert {token.token_ids.ids[0] for token in metadata.stop_tokens} == {1, 106}
    question = "What is the capital of France?"
    with engine(bundle) as opened:
        for turns in range(3):
            said = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]
            history = [message for _ in range(turns) for message in said]
            prompt = source.apply_chat_template(
                [*history, {"role": "user", "content": question}],
                add_generation_prompt=True,
                return_dict=False,
            )
            with opened.create_conversation(messages=history) as conversation:
                rendered = conversation.render_message_to_string(question)
            assert [opened.bos_token_id, *opened.tokenize(rendered)] == prompt
            assert prompt.count(105) == 2 * turns + 2  # <start_of_turn>
    limits = ["--top-k", "1", "--max-num-tokens", "64", "--cache", "no"]
    assert _official_client("run", str(bundle), "--prompt", question, *limits).strip()
    ours = [sys.executable, "-m", "cli", "run", str(bundle), "--prompt", question]
    ours += ["--max-tokens", "8"]
    answer = subprocess.check_output(ours, stdin=subprocess.DEVNULL, timeout=300)
    assert answer.strip()


PROSE = TEXT.read_text(encoding="utf-8")[:800]


def perplexity(bundle: Path) -> float:
    with Model(bundle) as model:
        return measure_perplexity(model, PROSE).perplexity


@pytest.fixture(scope="module")
def perplexity_in_float(gemma3_fp32_bundle: Path) -> float:
    return perplexity(gemma3_fp32_bundle)


@pytest.mark.parametrize("scheme", [name for name in SCHEMES if name != "fp32"])
def test_every_scheme_runs_and_stays_near_float(
    gemma3_gguf: Path, perplexity_in_float: float, tmp_path: Path, scheme: str
) -> None:
    """In the engine, with real weights whose rows blocks of 128 divide."""
    bundle = tmp_path / "m.litertlm"
    options = ConvertOptions(quantize=scheme, prefill_lengths=(8, 64))
    with open_checkpoint(gemma3_gguf) as checkpoint:
        ModelConverter(checkpoint, "gemma", options).convert(bundle)
    found = perplexity(bundle)
    print(f"{scheme}: perplexity {found:.2f}, fp32 {perplexity_in_float:.2f}")
    most = 2.0 if "int4" in scheme else 1.1
    assert 0.8 < found / perplexity_in_float < most
