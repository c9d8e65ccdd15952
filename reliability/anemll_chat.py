"""ANEMLL's own Python chats read a folder of Core ML packages, and answer from it.

    git clone https://github.com/Anemll/Anemll
    venv/bin/python -m reliability.anemll_chat Anemll FOLDER                # of a small model
    venv/bin/python -m reliability.anemll_chat Anemll FOLDER --source MODEL # the same tokens?

What the checkout has of `tests/chat.py` and `tests/chat_full.py` runs as it is, from its options to
its answer: it reads meta.yaml, finds files and functions, loads the tokenizer, makes states and
masks, reads the prompt and asks for tokens. Only what needs Apple's runtime, `predict` and
`make_state` of coremltools, is done by its reference semantics, where every input is held against
what the package declares. That is slow: a model of more than 0.1 B parameters takes hours. With
`--source` the tokens must be those of transformers, which palettes may change: FOLDER is to be of
float16 (`--no-lut`). The last line is one JSON document.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import json
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import numpy as np

from benchmarks.measure import note

CHATS = ("chat", "chat_full")


class Asked:
    """What a chat asked of the packages: `(file, function)`, and how often it called each."""

    def __init__(self) -> None:
        self.calls: dict[str, int] = {}

    def count(self, path: Path, function: str) -> None:
        """Note a call."""
        key = f"{path.name}: {function}"
        self.calls[key] = self.calls.get(key, 0) + 1


def model_class(asked: Asked) -> type:
    """coremltools' MLModel, whose functions run on its reference semantics."""
    from coremltools.models import MLModel

    from tests.coreml_interpreter import Package

    loaded: dict[Path, Package] = {}

    class ReferenceModel(MLModel):
        def __init__(self, model: str, *args: Any, **options: Any) -> None:
            super().__init__(model, *args, **options | {"skip_model_load": True})
            path = Path(model)
            self._path = path
            self._package = loaded.setdefault(path, Package(path))
            self._function = options.get("function_name") or next(iter(self._package.functions))

        def make_state(self) -> dict[str, np.ndarray]:
            return self._package.new_states(self._function)

        def predict(self, data: dict[str, Any], state: Any = None, **_: Any) -> dict[str, Any]:
            asked.count(self._path, self._function)
            wanted = self._described()
            for name, dtype in wanted.items():
                if np.asarray(data[name]).dtype != dtype:
                    raise TypeError(f"{name} is {np.asarray(data[name]).dtype}, not {dtype}")
            inputs = {name: np.asarray(data[name]) for name in wanted}
            results = self._package.run(self._function, inputs, state)
            return {
                name: value.astype(np.float16) if value.dtype.kind == "f" else value
                for name, value in results.items()
            }

        def _described(self) -> dict[str, type]:
            """Types of inputs, as the package's description has them."""
            about = self._package.spec.description
            here = next((f for f in about.functions if f.name == self._function), about)
            kinds = {65552: np.float16, 131104: np.int32}  # ArrayFeatureType.ArrayDataType
            return {each.name: kinds[each.type.multiArrayType.dataType] for each in here.input}

    return ReferenceModel


def imported(checkout: Path, name: str) -> ModuleType:
    """A chat of the checkout."""
    path = checkout / "tests" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"anemll_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@contextlib.contextmanager
def recorded(module: ModuleType, count: int) -> Iterator[tuple[list[int], list[int]]]:
    """The prompt's tokens and those of the answer, which ends after `count`."""
    prompt: list[int] = []
    answer: list[int] = []
    generate: Callable[..., int] = module.generate_next_token
    load: Callable[..., Any] = module.initialize_tokenizer
    ends: list[int] = []

    def loading(*args: Any, **options: Any) -> Any:
        tokenizer = load(*args, **options)
        ends.append(tokenizer.eos_token_id)
        # As transformers 4 answers, for which the chats were written.
        tokenizer.apply_chat_template = partial(tokenizer.apply_chat_template, return_dict=False)
        return tokenizer

    def generating(
        embed: Any, layers: Any, head: Any, ids: Any, pos: int, *args: Any, **o: Any
    ) -> int:
        if not prompt:
            prompt.extend(ids[0, :pos].tolist())
        if len(answer) == count:
            return ends[0]
        answer.append(generate(embed, layers, head, ids, pos, *args, **o))
        return answer[-1]

    with (
        mock.patch.object(module, "initialize_tokenizer", loading),
        mock.patch.object(module, "generate_next_token", generating),
    ):
        yield prompt, answer


def chat(checkout: Path, name: str, folder: Path, text: str, count: int) -> dict[str, Any]:
    """Run one of the chats, and say what became of it."""
    asked, said = Asked(), io.StringIO()
    arguments = [f"{name}.py", "--meta", str(folder / "meta.yaml"), "--prompt", text, "--nw"]
    with mock.patch("coremltools.models.MLModel", model_class(asked)):
        module = imported(checkout, name)
        with (
            recorded(module, count) as (prompt, answer),
            mock.patch.object(sys, "argv", arguments),
            contextlib.redirect_stdout(said),
            contextlib.redirect_stderr(said),
        ):
            code = module.main()
    text_said = said.getvalue()
    failed = code or not answer or "Error" in text_said or "Traceback" in text_said
    if failed:
        note(text_said)
    return {
        "chat": name,
        "failed": bool(failed),
        "prompt": prompt,
        "answer": answer,
        "calls": asked.calls,
    }


def expected(source: Path, prompt: list[int], count: int) -> list[int]:
    """What transformers answers, greedily."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    tokens = list(prompt)
    with torch.no_grad():
        for _ in range(count):
            tokens.append(int(model(torch.tensor([tokens])).logits[0, -1].argmax()))
    return tokens[len(prompt) :]


def main() -> int:
    """Run both chats."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("checkout", type=Path, help="of github.com/Anemll/Anemll")
    parser.add_argument("folder", type=Path, help="with meta.yaml and packages")
    parser.add_argument("--source", type=Path, metavar="MODEL", help="the folder it was made of")
    parser.add_argument("--prompt", default="Hello, who are you?")
    parser.add_argument("--tokens", type=int, default=4, metavar="N", help="of the answer")
    args = parser.parse_args()
    results = []
    for name in CHATS:
        note(name)
        result = chat(args.checkout, name, args.folder.resolve(), args.prompt, args.tokens)
        if args.source and not result["failed"]:
            answer = expected(args.source, result["prompt"], len(result["answer"]))
            result["transformers"] = answer
            result["failed"] = answer != result["answer"]
        results.append(result)
    print(json.dumps(results))
    return int(any(result["failed"] for result in results))


if __name__ == "__main__":
    sys.exit(main())
