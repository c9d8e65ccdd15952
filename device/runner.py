"""The engine's own Android program, `litert_lm_main`: found, started, and its report read.

LiteRT-LM builds two programs (runtime/engine/ in its repository), and either will do:

    litert_lm_main            takes --backend, --model_path, --input_prompt, --input_prompt_file.
                              It prints `input_prompt: TEXT`, the answer, and how fast it was.
    litert_lm_advanced_main   takes dozens more, --benchmark_prefill_tokens among them. It prints
                              the answer alone; its report, with --benchmark, is in its log.

Some versions of the first list the options of the second, and do not read them. The log is on
stderr. The report of both is BenchmarkInfo's operator<< (runtime/engine/io_types.cc):

    BenchmarkInfo:
      Init Phases (7):
        - Init Total: 580.10 ms
      Time to first token: 0.92 s
      Prefill Turns (Total 1 turns):
        Prefill Turn 1: Processed 16 tokens in 819.9514ms duration.
          Prefill Speed: 19.51 tokens/sec.
      Decode Turns (Total 1 turns):
        Decode Turn 1: Processed 88 tokens in 8.7038005s duration.
          Decode Speed: 10.11 tokens/sec.
"""

from __future__ import annotations

import codecs
import contextlib
import re
import shlex
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NamedTuple

from converter.errors import DeviceError, EngineError, OptionError
from device.adb import Device
from device.files import deliver
from runner.native_log import find_reason

NAME = "litert_lm_main"
# What it loads: the accelerators and samplers, and what some versions are linked with.
_LIBRARIES = ("libLiteRt*.so", "libGemmaModelConstraintProvider.so", "libwebgpu_dawn.so")
HOW_TO_GET_IT = (
    "get litert_lm_main.android_arm64 from github.com/google-ai-edge/LiteRT-LM/releases (v0.11.0 "
    "has it) or build it, and give it with --runner FILE: see docs/device.md"
)
# (class, machine) of ELF: 32 or 64 bit, and e_machine.
_ELF = {"arm64-v8a": (2, 183), "x86_64": (2, 62), "armeabi-v7a": (1, 40), "x86": (1, 3)}
_OPTIONS = {"threads": "num_cpu_threads", "max_tokens": "max_output_tokens"}  # the second's
_OF_THE_SECOND = "use_session"  # which the first has in no version
_REPORT = "\nBenchmarkInfo:\n  Init Phases ("
# The engine then computes on the CPU, without another word.
_NO_GPU = "GPU accelerator could not be loaded"
_TURN = r"{0} Turn \d+: Processed (\d+) tokens.*\n\s*{0} Speed: ([\d.]+) tokens/sec"


class Figures(NamedTuple):
    """What the engine measured.

    Attributes:
        prompt, new: tokens that were read, and written.
        prefill, decode: of them, per second.
        first_token_seconds: None where this version does not say it.
        load_seconds: from the start until it can read a prompt; None as above.
    """

    prompt: int
    new: int
    prefill: float
    decode: float
    first_token_seconds: float | None
    load_seconds: float | None


@dataclass(frozen=True)
class Program:
    """The engine's program on a device.

    Attributes:
        folder: where it and its libraries lie.
        flags: the options that it says it takes.
    """

    device: Device
    folder: str
    flags: frozenset[str]

    @property
    def is_advanced(self) -> bool:
        """Whether it reads more than a model and a prompt."""
        return _OF_THE_SECOND in self.flags

    def answer(
        self,
        model: str,
        prompt: str,
        options: Mapping[str, str | int | None],
        verbose: bool = False,
        report: list[str] | None = None,
    ) -> Iterator[str]:
        """The answer to one prompt, piece by piece.

        Args:
            model: its path on the device.
            options: `backend`, `threads`, `max_tokens`; None leaves the engine's choice.
            verbose: let its log through, to stderr.
            report: gets what else the engine printed.

        Raises:
            OptionError: this program does not take an option.
            EngineError: the engine failed.
            DeviceError: the device is gone.
        """
        flags = self._flags(model, options)
        with (
            self._prompt_file(prompt) as path,
            contextlib.closing(
                self._output([*flags, f"--input_prompt_file={path}"], options, verbose, report)
            ) as chunks,
        ):
            yield from answer_alone(chunks, prompt, report)

    def measure(
        self,
        model: str,
        options: Mapping[str, str | int | None],
        lengths: tuple[int, int] | str,
        verbose: bool = False,
    ) -> Figures:
        """Run it once, for its speed; raises as `answer` does.

        Args:
            lengths: tokens to read and to write, or a prompt where it does not take them.
        """
        report: list[str] = []
        if isinstance(lengths, str):
            for _ in self.answer(model, lengths, options, verbose, report):
                pass
        else:
            flags = [
                *self._flags(model, options),
                "--benchmark",
                f"--benchmark_prefill_tokens={lengths[0]}",
                f"--benchmark_decode_tokens={lengths[1]}",
                "--async=false",
            ]
            report += list(self._output(flags, options, verbose, report))
        figures = read_report("".join(report))
        if figures is None:
            raise EngineError(
                f"{NAME} on {self.device.serial}",
                "its output has no BenchmarkInfo with a prefill and a decode turn",
                "see it with --verbose",
            )
        return figures

    def _flags(self, model: str, options: Mapping[str, str | int | None]) -> list[str]:
        flags = [f"--backend={options['backend']}", f"--model_path={model}"]
        for name, flag in _OPTIONS.items():
            if options.get(name) is not None:
                if not self.is_advanced:
                    raise OptionError(
                        f"--{name.replace('_', '-')}",
                        f"the runner on {self.device.serial} does not read its --{flag}",
                        "leave it out, or push litert_lm_advanced_main with --runner",
                    )
                flags.append(f"--{flag}={options[name]}")
        return flags

    @contextlib.contextmanager
    def _prompt_file(self, prompt: str) -> Iterator[str]:
        """A prompt on the device: adb's commands have a limit of their own, and others see them."""
        path = f"{self.folder}/prompt.txt"
        with tempfile.TemporaryDirectory(prefix="litert-lm-push-") as scratch:
            file = Path(scratch) / "prompt.txt"
            file.write_bytes(prompt.encode())
            try:
                deliver(self.device, file, path, show=False)
                yield path
            finally:
                with contextlib.suppress(DeviceError):
                    self.device.shell(f"rm -f {shlex.quote(path)}")

    def _output(
        self,
        flags: list[str],
        options: Mapping[str, str | int | None],
        verbose: bool,
        report: list[str] | None,
    ) -> Generator[str, None, None]:
        """What the program prints, as it comes; its log goes to `report` at the end."""
        log: list[str] = []
        with subprocess.Popen(
            self.device.argv("shell", _command(self.folder, flags)),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            reader = threading.Thread(target=_keep, args=(process.stderr, log, verbose))
            reader.start()
            decoder = codecs.getincrementaldecoder("utf-8")("replace")
            try:
                while chunk := process.stdout.read1():  # type: ignore[attr-defined]
                    yield decoder.decode(chunk)
                yield decoder.decode(b"", final=True)
                code = process.wait()
            finally:  # once adb is gone, Android hangs up on the program
                process.kill()
                process.wait()
                reader.join()
        said = "".join(log)
        if code:
            raise self._failure(code, said)
        if options["backend"] == "gpu" and _NO_GPU in said:
            raise EngineError(
                f"{NAME} on {self.device.serial}",
                "the GPU accelerator could not be loaded, and it computed on the CPU",
                "put libLiteRtGpuAccelerator.so and the like beside the file given with --runner, "
                "or use --backend cpu",
            )
        if report is not None:
            report.append(said)

    def _failure(self, code: int, log: str) -> EngineError:
        return EngineError(
            f"{NAME} on {self.device.serial}",
            find_reason(log) or f"it ended with {code} and said nothing",
            "see its log with --verbose",
        )


def install(device: Device, folder: str, file: Path | None, show: bool) -> Program:
    """The engine's program in a folder of the device, put there where `file` says which.

    Args:
        file: on this computer; the engine's libraries beside it go along.

    Raises:
        OptionError: the file is none of this device's.
        DeviceError: it cannot be copied there.
        EngineError: there is none, or it does not start.
    """
    path = f"{folder}/{NAME}"
    if file is not None:
        libraries = [found for name in _LIBRARIES for found in sorted(file.parent.glob(name))]
        abi = device.property("ro.product.cpu.abi")
        for each in (file, *libraries):
            _check_machine(each, abi)
        for library in libraries:
            deliver(device, library, f"{folder}/{library.name}", show=show)
        deliver(device, file, path, program=True, show=show)
    elif not device.shell(f"ls {shlex.quote(path)} 2> /dev/null || true").strip():
        raise EngineError(f"{device.serial}:{path}", "the engine is not there", HOW_TO_GET_IT)
    # It prints them to stdout, and exits with 1 after that.
    done = device.attempt(_command(folder, ["--helpfull"]))
    flags = frozenset(re.findall(r"^\s*--(\w+) \(", done.stdout, re.MULTILINE))
    if not flags >= {"backend", "model_path", "input_prompt_file"}:
        lines = done.stderr.split("\n")
        why = find_reason(done.stderr) or "it is not LiteRT-LM's, or older than 0.9"
        if any("CANNOT LINK" in line for line in lines):
            why = next(line for line in lines if "CANNOT LINK" in line)
        raise EngineError(
            f"{device.serial}:{path}",
            f"it does not start ({why})",
            "put the libraries of LiteRT-LM's prebuilt/ beside it and give it again with --runner: "
            "see docs/device.md",
        )
    return Program(device, folder, flags)


def answer_alone(
    chunks: Iterator[str], prompt: str, report: list[str] | None = None
) -> Iterator[str]:
    """The answer in what the program prints: without the prompt before it and the report behind.

    Args:
        report: gets what comes behind.
    """
    echo = f"input_prompt: {prompt}\n"
    held = ""
    begun = False
    for chunk in chunks:
        held += chunk
        if not begun and len(held) < len(echo) and echo.startswith(held):
            continue
        if not begun:
            held, begun = held.removeprefix(echo), True
        if _REPORT in held:
            break
        sure = len(held) - _may_begin_report(held)
        yield held[:sure]
        held = held[sure:]
    answer, mark, behind = held.partition(_REPORT)
    yield answer
    rest = [mark + behind, *chunks]
    if report is not None:
        report += rest


def _may_begin_report(text: str) -> int:
    """How many characters at the end of a text may be the report's first."""
    lengths = range(min(len(text), len(_REPORT)), 0, -1)
    return next((n for n in lengths if _REPORT.startswith(text[-n:])), 0)


def read_report(text: str) -> Figures | None:
    """The figures in the engine's report, or None where a prefill or a decode is missing."""
    prompt, prefill = _rate(text, "Prefill")
    new, decode = _rate(text, "Decode")
    if not (prompt and new):
        return None
    first = re.search(r"Time to first token: ([\d.]+) s", text)
    load = re.search(r"(?:Init Total|Total init time): ([\d.]+) ms", text)
    return Figures(
        prompt,
        new,
        prefill,
        decode,
        float(first[1]) if first else None,
        float(load[1]) / 1000 if load else None,
    )


def _rate(text: str, kind: str) -> tuple[int, float]:
    """Tokens of all turns, and how many per second."""
    found = re.findall(_TURN.format(kind), text)
    turns = [(int(tokens), float(rate)) for tokens, rate in found if float(rate)]
    tokens = sum(count for count, _ in turns)
    seconds = sum(count / rate for count, rate in turns)
    return tokens, tokens / seconds if seconds else 0.0


def _command(folder: str, flags: list[str]) -> str:
    """As `exec`, so that the program itself hears when adb is gone."""
    quoted = shlex.quote(folder)
    arguments = " ".join(shlex.quote(flag) for flag in flags)
    return f"cd {quoted} && exec env LD_LIBRARY_PATH={quoted} ./{NAME} {arguments}"


def _keep(stream: IO[bytes], log: list[str], verbose: bool) -> None:
    for line in stream:
        log.append(line.decode("utf-8", "replace"))
        if verbose:
            print(log[-1], end="", file=sys.stderr, flush=True)


def _check_machine(file: Path, abi: str) -> None:
    """Raise OptionError unless a file is a program or library for a device's processor.

    A script is taken as it is. ELF's header: www.sco.com/developers/gabi/latest/ch4.eheader.html
    """
    try:
        with file.open("rb") as stream:
            head = stream.read(20)
    except OSError as error:
        raise OptionError(f"--runner {file}", str(error.strerror), HOW_TO_GET_IT) from error
    if head.startswith(b"#!"):
        return
    if not head.startswith(b"\x7fELF") or len(head) < 20:
        raise OptionError(f"--runner {file}", "it is no program for Android", HOW_TO_GET_IT)
    is_for = (head[4], struct.unpack_from("<H", head, 18)[0])
    if is_for != _ELF.get(abi):
        built_for = next(
            (name for name, kind in _ELF.items() if kind == is_for), "another processor"
        )
        raise OptionError(
            f"--runner {file}", f"it is built for {built_for}, the device is {abi}", HOW_TO_GET_IT
        )
