"""The torch engine: PyTorch's own export of a checkpoint, in the same bundle as ours.

litert-torch builds, traces and quantises the network, as the project's documents describe; config,
family, tokenizer, metadata and file are the direct engine's. It takes minutes, some 15 bytes of
memory per parameter, and an environment of its own (`./setup --reference`): a second opinion.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import shutil
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from converter import home
from converter.base import ModelConverter, Plan, Progress
from converter.checkpoint.base import Checkpoint
from converter.errors import EngineError, OptionError, OutputError, UnsupportedError
from converter.memory import free_memory
from converter.options import ConvertOptions
from converter.output.atomic_file import AtomicFile, Seal
from converter.tflite.kv_cache import Target
from converter.version import __version__
from converter.weights.row_format import Clip

SCHEMES = ("dynamic_int8", "int8", "fp16", "fp32")
# Measured: 6.3 GB for 270M, 9.7 GB for 0.6B (litert-torch 0.9.4).
BYTES_PER_PARAMETER = 15
# transformers' model alone, in float32.
_BYTES_TO_RUN = 4
# The network in float and, beside it, quantised.
_DISK_BYTES_PER_PARAMETER = 8

ENVIRONMENT = home.ROOT / "venv-reference"
HOW_TO_INSTALL = (
    "run ./setup --reference"
    if home.IS_CHECKOUT
    else "get the source of litert-lm-cli and run ./setup --reference there"
)
_REQUIREMENTS = home.ROOT / "requirements-reference.txt"
_INSTALLED = ENVIRONMENT / ".complete"  # a copy of the requirements, written last
_WORKER = Path(__file__).with_name("worker.py")
_PIECE = 1 << 22  # bytes
_KEPT_LINES = 100  # of what the worker prints, to find its reason in
_EXCEPTION = re.compile(r"[\w.]*(Error|Exception): ")

Tell = Callable[[str], None]


def is_installed() -> bool:
    """Whether `./setup --reference` was run since its requirements last changed."""
    return _INSTALLED.exists() and _INSTALLED.read_bytes() == _REQUIREMENTS.read_bytes()


def install() -> None:
    """Run `./setup --reference`; what it prints goes to stderr.

    Raises:
        EngineError: it failed, and said why.
    """
    done = subprocess.run([home.ROOT / "setup", "--reference"], stdout=sys.stderr, check=False)
    if done.returncode:
        raise EngineError("./setup --reference", "it failed", "see above, and run it again")


class ReferenceConverter(ModelConverter):
    """Converts one checkpoint with litert-torch.

    The plan is the direct engine's for `--target gpu`, whose layout both have; only the network
    is made by the other one.

    Args:
        tell: is told the stages of the export.

    Raises (from `plan` and `convert`):
        EngineError: the export failed.
        OptionError, SourceError, UnsupportedError, OutputError: see `converter.errors`.
    """

    producer = f"litert-lm-cli {__version__} with litert-torch"
    instead_of_gpu = "leave --engine torch out and convert it for the CPU: --target cpu"

    def __init__(
        self,
        checkpoint: Checkpoint,
        name: str,
        options: ConvertOptions,
        tell: Tell = lambda _: None,
    ) -> None:
        super().__init__(checkpoint, name, options)
        self._tell = tell

    def plan(self) -> Plan:
        """The direct engine's plan, where both can carry it out."""
        for option, refused in (
            ("--target cpu", self.options.target is not Target.GPU),
            ("--lora", bool(self.options.lora)),
            ("--draft", bool(self.options.drafts)),
            ("--clip max", self.options.clip is not Clip.MSE),
            ("--calibrate", self.options.calibrate is not None),
            ("--bits", self.options.bits is not None),
            (f"--quantize {self.options.quantize}", self.options.quantize not in (None, *SCHEMES)),
        ):
            if refused:
                schemes = ", ".join(SCHEMES)
                raise OptionError(
                    option,
                    f"the torch engine makes the plain layout for gpu in {schemes}, and no more",
                    "leave this option or --engine torch out",
                )
        _check_source(self.checkpoint, self.name)
        plan = super().plan()
        _check_memory(_parameters(plan), BYTES_PER_PARAMETER, self.name)
        return plan

    def scratch_bytes(self, plan: Plan) -> int:
        return _DISK_BYTES_PER_PARAMETER * _parameters(plan)

    def write(
        self,
        plan: Plan,
        output: Path,
        progress: Progress = lambda _: None,
        seal: Seal | None = None,
    ) -> None:
        """Export the network beside `output`, and pack it."""
        plan.text()  # a fault of the template shows before the minutes that an export takes
        with AtomicFile(output) as file:
            with _work_folder(output) as folder:
                network = folder / "network.tflite"
                _work(
                    "export",
                    {
                        "folder": str(self.checkpoint.path),
                        "output": str(network),
                        "scheme": plan.quantization.name,
                        "prefill_lengths": plan.prefill_lengths,
                        "cache_length": plan.cache_length,
                        "family": plan.family.name,
                        "spec": dataclasses.asdict(plan.spec),
                    },
                    self.name,
                    self._tell,
                )
                text = plan.text_for(network.stat().st_size)
                self.write_sections(file, text.bundle, text.sections, _pieces(network, progress))
            file.commit(seal)


@contextmanager
def _work_folder(output: Path) -> Iterator[Path]:
    """A folder beside the output, of a fixed name: the next run removes what a killed one left."""
    folder = output.with_name(f".{output.name}.torch")
    try:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
    except OSError as error:
        raise OutputError(
            str(output), error.strerror or str(error), "choose another --output-dir"
        ) from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def next_token_logits(
    checkpoint: Checkpoint, name: str, tokens: Sequence[int], folder: Path, tell: Tell
) -> np.ndarray:
    """What transformers' float32 model says after each token: `(len(tokens), vocabulary)`.

    Args:
        checkpoint: one that passed `check_can_run`.
        folder: for a file of these numbers, which are read from it as they are used.

    Raises:
        EngineError: it failed.
    """
    output = folder / "logits"
    request = {"folder": str(checkpoint.path), "output": str(output), "tokens": list(tokens)}
    _work("logits", request, name, tell)
    return np.memmap(output, np.float32, "r").reshape(len(tokens), -1)


def check_can_run(checkpoint: Checkpoint, name: str) -> None:
    """Raise UnsupportedError for a model that transformers cannot read, or not in this memory."""
    _check_source(checkpoint, name)
    parameters = sum(math.prod(tensor.shape) for tensor in checkpoint.tensors.values())
    _check_memory(parameters, _BYTES_TO_RUN, name)


def _check_source(checkpoint: Checkpoint, name: str) -> None:
    if checkpoint.format != "safetensors":
        raise UnsupportedError(
            name,
            "the torch engine reads folders of safetensors, and this is a GGUF file",
            "leave --engine torch out, or pass the model that the GGUF was made of",
        )
    if checkpoint.quantization is not None:
        raise UnsupportedError(
            name,
            f"the torch engine reads plain weights, and these are quantised "
            f"({checkpoint.quantization})",
            "leave --engine torch out, or pass the model that this one was made of",
        )
    if "text_config" in checkpoint.config:
        raise UnsupportedError(
            name,
            "litert-torch does not trace the text part of a multimodal model",
            "leave --engine torch out",
        )


def _check_memory(parameters: int, bytes_per_parameter: int, name: str) -> None:
    needed, free = bytes_per_parameter * parameters, free_memory()
    if free is not None and free < needed:
        raise UnsupportedError(
            name,
            f"--engine torch needs about {needed / 1e9:.1f} GB of memory, {bytes_per_parameter} "
            f"bytes per parameter, and {free / 1e9:.1f} GB are free",
            "leave --engine torch out: the direct engine needs less than 0.3 GB",
        )


def _parameters(plan: Plan) -> int:
    return sum(math.prod(weight.shape) for weight in plan.weights)


def _pieces(path: Path, progress: Progress) -> Iterator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            yield piece
            progress(len(piece))


def _work(task: str, request: Mapping[str, object], name: str, tell: Tell) -> None:
    """Let the worker do something; it is gone when this returns, however it does."""
    command: list[str | Path] = [
        ENVIRONMENT / "bin" / "python",
        "-I",
        _WORKER,
        task,
        json.dumps(request),
    ]
    # Stages on one line each; and nothing of it is for a terminal.
    environment = {**os.environ, "COLUMNS": "1000", "HF_HUB_OFFLINE": "1"}
    last: deque[str] = deque(maxlen=_KEPT_LINES)
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=environment,
    ) as worker:
        assert worker.stdout is not None
        try:
            for line in worker.stdout:
                if "[START]" in line:
                    tell(line.partition("[START]")[2].rpartition(">")[2].strip())
                elif line.strip():
                    last.append(line.strip())
        except BaseException:
            worker.kill()
            raise
    if worker.returncode < 0:
        why = f"it was killed by signal {-worker.returncode}, perhaps for want of memory"
    elif worker.returncode:
        errors = [line for line in last if _EXCEPTION.match(line)]
        why = (errors or [*last] or ["no reason was given"])[-1]
    else:
        return
    raise EngineError(f"{name}: --engine torch", why, "leave --engine torch out")
