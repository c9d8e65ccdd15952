"""`litert-lm-cli push`: Android's real adb, and a stand-in for the phone behind it.

The programs that run there are stand-ins, too, around the real engine: `tests/android_runner.py`.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from benchmarks.run_report import rates
from cli.main import main
from tests.adb_server import AdbServer, Phone, real_adb
from tests.android_runner import write_program

ROOT = Path(__file__).resolve().parents[2]
FOLDER = "/data/local/tmp/litert-lm"
NAME = "qwen3-tiny.litertlm"


@pytest.fixture(scope="module")
def server() -> Iterator[AdbServer]:
    real_adb()
    with AdbServer({}) as server:
        yield server


@pytest.fixture(autouse=True)
def environment(server: AdbServer, monkeypatch: pytest.MonkeyPatch) -> None:
    server.phones.clear()
    monkeypatch.setenv("ANDROID_ADB_SERVER_PORT", str(server.port))
    for name in ("ANDROID_SERIAL", "ANDROID_HOME", "ANDROID_SDK_ROOT", "ADB_TRACE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def phone(server: AdbServer, tmp_path: Path) -> Phone:
    """One that is ready, and alone."""
    phone = Phone(tmp_path / "phone")
    server.phones["PIXEL"] = phone
    return phone


@pytest.fixture
def bundle(qwen3_bundle: Path) -> Path:
    """One of our bundles, of random weights."""
    return qwen3_bundle


def there(phone: Phone, name: str = NAME) -> Path:
    return phone.temporary / "litert-lm" / name


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def names(phone: Phone) -> list[str]:
    folder = there(phone).parent
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def fails(capfd: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """What `push` says when it fails: one line."""
    capfd.readouterr()
    assert main(["push", "--quiet", *map(str, arguments)]) != 0
    said = capfd.readouterr()
    assert said.out == ""
    [line] = said.err.splitlines()
    return line.removeprefix("error: ")


# A file arrives -----------------------------------------------------------------------------------


def test_a_bundle_arrives_whole_and_once(
    bundle: Path, phone: Phone, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["push", str(bundle)]) == 0
    said = capfd.readouterr()
    assert said.out == f"{FOLDER}/{NAME}\n"
    assert f"{bundle} (14.3 MB) -> PIXEL:{FOLDER}/{NAME}\n" in said.err
    assert digest(there(phone)) == digest(bundle)
    assert names(phone) == [NAME]
    assert phone.received == [f"{FOLDER}/{NAME}.part"]
    assert main(["push", str(bundle)]) == 0
    said = capfd.readouterr()
    assert said.out == f"{FOLDER}/{NAME}\n"
    assert "it is there already, with the same hash\n" in said.err
    assert len(phone.received) == 1


def test_another_file_of_the_same_size_is_sent(bundle: Path, phone: Phone) -> None:
    there(phone).parent.mkdir()
    there(phone).write_bytes(bytes(bundle.stat().st_size))
    there(phone, f"{NAME}_1795720263_14344052.xnnpack_cache").write_bytes(b"packed for the old one")
    there(phone, "other.litertlm.xnnpack_cache").touch()
    assert main(["push", str(bundle), "--quiet"]) == 0
    assert digest(there(phone)) == digest(bundle)
    assert names(phone) == ["other.litertlm.xnnpack_cache", NAME]


def test_a_model_is_converted_first(
    bundle: Path,
    phone: Phone,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("LITERT_LM_MODELS", str(tmp_path / "models"))
    (tmp_path / "it's mine").symlink_to(bundle.with_suffix(""))  # what it was made of
    folder = "/data/local/tmp/a folder"
    wanted = [str(tmp_path / "it's mine"), "--to", f"{folder}/", "--quantize", "fp16", "--quiet"]
    assert main(["push", *wanted]) == 0
    [path] = (tmp_path / "models").rglob("*.litertlm")
    assert capfd.readouterr().out == f"{folder}/{path.name}\n"
    assert digest(phone.temporary / "a folder" / path.name) == digest(path)


def test_an_android_without_sha256sum(bundle: Path, phone: Phone) -> None:
    phone.tool("sha256sum", "echo 'sha256sum: inaccessible or not found' >&2; exit 127")
    assert main(["push", str(bundle), "--quiet"]) == 0
    assert main(["push", str(bundle), "--quiet"]) == 0
    assert (len(phone.received), digest(there(phone))) == (1, digest(bundle))


def test_a_device_without_room(
    bundle: Path, phone: Phone, capfd: pytest.CaptureFixture[str]
) -> None:
    phone.tool(
        "df",
        "echo 'Filesystem     1K-blocks  Used Available Use% Mounted on'\n"
        "echo '/dev/block/dm-9    20000 19997         3 100% /data'",
    )
    said = fails(capfd, bundle)
    free_some = "free some, or choose another folder with --to"
    assert said == f"PIXEL:{FOLDER}, needs 14.3 MB, 0.0 MB are free, {free_some}"
    assert (phone.received, names(phone)) == ([], [])


def test_a_file_that_arrives_damaged(
    bundle: Path, phone: Phone, capfd: pytest.CaptureFixture[str]
) -> None:
    phone.flips = True
    assert fails(capfd, bundle).startswith(f"PIXEL:{FOLDER}/{NAME}, it arrived damaged, ")
    assert names(phone) == []
    assert main(["push", str(bundle), "--quiet"]) == 0
    assert digest(there(phone)) == digest(bundle)


def test_a_folder_that_cannot_be_written(
    bundle: Path, phone: Phone, capfd: pytest.CaptureFixture[str]
) -> None:
    (phone.temporary / "litert-lm").write_text("no folder")
    assert re.match(r"PIXEL, mkdir: .*File exists, ", fails(capfd, bundle))
    (phone.temporary / "folder").mkdir()
    # It goes away after it was made.
    phone.tool("df", f"rmdir {phone.temporary}/folder; exec /bin/df -k {phone.temporary}")
    said = fails(capfd, bundle, "--to", "/data/local/tmp/folder")
    assert said.startswith(f"PIXEL:/data/local/tmp/folder/{NAME}.part, failed to copy ")
    assert "couldn't create file: No such file or directory" in said


def test_a_device_that_is_unplugged(
    bundle: Path, phone: Phone, capfd: pytest.CaptureFixture[str]
) -> None:
    there(phone).parent.mkdir()
    there(phone).write_bytes(b"an older one")
    phone.unplugged_after = 100
    said = fails(capfd, bundle)  # adb notices it while it writes, or while it waits for an answer
    assert re.fullmatch(
        f"PIXEL:{FOLDER}/{NAME}.part, (the copy broke off|failed to .*), check the cable and .*",
        said,
    )
    assert names(phone) == [NAME, f"{NAME}.part"]  # nobody could tidy up
    assert there(phone).read_bytes() == b"an older one"
    assert fails(capfd, bundle).startswith("PIXEL, adb says that it is offline, plug it in again")
    phone.state = "device"
    assert main(["push", str(bundle), "--quiet"]) == 0
    assert (names(phone), digest(there(phone))) == ([NAME], digest(bundle))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_push_that_is_interrupted(bundle: Path, phone: Phone, number: signal.Signals) -> None:
    phone.stalls = threading.Event()
    with subprocess.Popen(
        [sys.executable, "-m", "cli", "push", str(bundle), "--quiet"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            until(lambda: names(phone) == [f"{NAME}.part"])
            process.send_signal(number)
            said, errors = process.communicate(timeout=30)
        finally:
            phone.stalls.set()
            process.kill()
    assert process.returncode == 128 + number
    assert said == ""
    assert re.fullmatch(r"error: interrupted, .*, run it again\n", errors)
    assert names(phone) == []


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


# Which device -------------------------------------------------------------------------------------


def test_one_of_several(
    bundle: Path,
    server: AdbServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    phones = {name: Phone(tmp_path / name) for name in ("A", "B", "C")}
    server.phones.update(phones)
    assert fails(capfd, bundle) == "adb, 3 devices are attached, add --serial A or B or C"
    monkeypatch.setenv("ANDROID_SERIAL", "A")
    assert main(["push", str(bundle), "--quiet"]) == 0
    assert main(["push", str(bundle), "--quiet", "--serial", "B"]) == 0
    assert [len(phone.received) for phone in phones.values()] == [1, 1, 0]
    monkeypatch.delenv("ANDROID_SERIAL")
    phones["A"].state = "unauthorized"
    phones["B"].state = "offline"
    assert main(["push", str(bundle), "--quiet"]) == 0  # the only one that is ready
    assert len(phones["C"].received) == 1
    assert fails(capfd, bundle, "--serial", "X") == (
        "X, no such device is attached, see adb devices (attached: A, B, C)"
    )


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ("unauthorized", "it does not trust this computer, unlock it and allow USB debugging"),
        ("authorizing", "it has not said yet whether it trusts this computer, unlock it"),
        ("offline", "adb says that it is offline, plug it in again"),
        (
            "no permissions (user in plugdev group; are your udev rules wrong?)",
            "this user may not open its USB port, see developer.android.com",
        ),
        ("recovery", "it is in the state recovery, start Android on it"),
    ],
)
def test_a_device_that_takes_no_commands(
    state: str, said: str, bundle: Path, phone: Phone, capfd: pytest.CaptureFixture[str]
) -> None:
    phone.state = state
    assert fails(capfd, bundle).startswith(f"PIXEL, {said}")
    assert fails(capfd, bundle, "--serial", "PIXEL").startswith(f"PIXEL, {said}")


def test_no_device_and_an_old_one(
    bundle: Path, server: AdbServer, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert fails(capfd, bundle).startswith("adb, no device is attached, connect one by USB")
    assert fails(capfd, bundle, "--serial", "X").endswith("(nothing is attached)")
    server.phones["OLD"] = Phone(tmp_path / "old", features="")
    assert fails(capfd, bundle).startswith("OLD, its Android is older than 7.0, ")


def test_where_adb_is_found(
    bundle: Path,
    phone: Phone,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    adb = real_adb()
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    said = fails(capfd, bundle)
    assert said.startswith(
        "adb, it is neither on PATH nor in $ANDROID_HOME/platform-tools, install"
    )
    assert fails(capfd, bundle, "--adb", "no/adb").startswith("--adb no/adb, there is no such")
    tools = tmp_path / "sdk/platform-tools"
    tools.mkdir(parents=True)
    (tools / "adb").symlink_to(adb)
    monkeypatch.setenv("ANDROID_HOME", str(tmp_path / "sdk"))
    assert main(["push", str(bundle), "--quiet", "--adb", adb]) == 0
    assert main(["push", str(bundle), "--quiet"]) == 0
    assert len(phone.received) == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--prompt", "Hi"], "--prompt, has no effect without --run or --bench"),
        (["--threads", "2"], "--threads, has no effect without --run or --bench"),
        (["--run", "--prompt", "Hi", "--json"], "--json, has no effect without --bench"),
        (["--run", "--prompt", "Hi", "--rounds", "3"], "--rounds, has no effect without --bench"),
        (["--run", "--prompt", " "], "--prompt, is empty"),
        (["--bench", "--backend", "gpu", "--threads", "2"], "--threads, has no effect on gpu"),
        (["--to", "tmp"], "--to tmp, it is no folder with its whole path"),
        (["--to", "/"], "--to /, it is no folder with its whole path"),
        (["--run", "--bench"], "litert-lm-cli push, argument --bench: not allowed with"),
    ],
)
def test_options_that_do_not_fit(
    arguments: list[str], said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert fails(capfd, "model.litertlm", *arguments).startswith(said)


# The engine there ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def loaded(smollm2_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Phone:
    """A device that has a real model."""
    phone = Phone(tmp_path_factory.mktemp("device") / "phone")
    there(phone).parent.mkdir()
    os.link(smollm2_bundle, there(phone, smollm2_bundle.name))
    return phone


@pytest.fixture(params=["litert_lm_main", "litert_lm_advanced_main"])
def runner(
    request: pytest.FixtureRequest, server: AdbServer, loaded: Phone, tmp_path: Path
) -> list[str]:
    """--runner FILE, for either program of the engine's."""
    server.phones["PIXEL"] = loaded
    advanced = "advanced" in request.param
    return ["--runner", str(write_program(tmp_path / request.param, advanced=advanced))]


def test_an_answer_from_the_device(
    runner: list[str], smollm2_bundle: Path, loaded: Phone, capfd: pytest.CaptureFixture[str]
) -> None:
    prompt = 'What\'s the capital of France?\nAnswer "in one" $HOME `id` sentence.'
    arguments = ["push", str(smollm2_bundle), "--run", "--prompt", prompt, "--quiet"]
    assert main([*arguments, *runner]) == 0
    said = capfd.readouterr()
    assert "Paris" in said.out
    assert "input_prompt" not in said.out
    assert "BenchmarkInfo" not in said.out
    assert said.out.endswith("\n")
    assert not said.out.endswith("\n\n")
    assert said.err == ""
    assert "prompt.txt" not in names(loaded)


def test_the_speed_on_the_device(
    runner: list[str], smollm2_bundle: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    advanced = runner[1].endswith("advanced_main")
    sizes = ["--prompt-tokens", "32", "--new-tokens", "8"] if advanced else ["--prompt", "Say hi."]
    arguments = ["push", str(smollm2_bundle), "--bench", "--json", "--rounds", "1", *sizes, *runner]
    assert main([*arguments, "--verbose", "--quiet"]) == 0
    said = capfd.readouterr()
    document = json.loads(said.out)
    assert document["machine"] == {
        "device": "Google Pixel 8", "soc": "Google Tensor G3", "abi": "arm64-v8a", "android": "14",
    }  # fmt: skip
    [case] = document["models"]["smollm2"]["cases"]
    figures = case["subjects"]["ours"]
    assert case["prompt"] > 8
    assert figures["prefill"] > 1
    assert figures["decode"] > 1
    assert figures["load_seconds"] > 0
    assert figures["first_token_seconds"] > 0
    if advanced:
        assert (case["prompt"], case["new"]) == (32, 8)
        decode = re.search(r"Decode Speed: ([\d.]+)", said.err)
        assert decode is not None
        assert float(decode[1]) == pytest.approx(figures["decode"])
    # And benchmarks.run's own table reads it.
    for model in document["models"].values():
        for case in model["cases"]:
            row = f"| smollm2 | {case['prompt']} + {case['new']} | {figures['prefill']:.0f} / "
            assert row in rates(document)


PUBLISHED = """Hello.

BenchmarkInfo:
  Init Phases (1):
    - Init Total: 580.10 ms
  Time to first token: 0.92 s
    Prefill Turn 1: Processed 16 tokens in 819.9514ms duration.
      Prefill Speed: 19.51 tokens/sec.
    Decode Turn 1: Processed 88 tokens in 8.7038005s duration.
      Decode Speed: 10.11 tokens/sec.
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    """A runner that prints what somebody has published of the real one, in place of computing."""
    path = tmp_path / "litert_lm_main"
    path.write_text(
        "#!/bin/sh\ncase $1 in\n"
        '--helpfull) printf "    --%s (...);\\n" backend model_path input_prompt_file; exit 1;;\n'
        "--backend=gpu) echo 'WARNING: [a.cc:187] GPU accelerator could not be loaded and "
        "registered.' >&2;;\nesac\n"
        f'echo "input_prompt: $(cat "${{3#*=}}")"\ncat <<END\n{PUBLISHED}END\n'
    )
    return path


def test_the_table(
    bundle: Path, phone: Phone, script: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["push", str(bundle), "--bench", "--quiet", "--runner", str(script)]) == 0
    assert capfd.readouterr().out == (
        "| prefill / decode, tok/s | prompt + new tokens | Google Pixel 8, Google Tensor G3, cpu "
        "| first token | load |\n| --- | --- | --- | --- | --- |\n"
        "| qwen3-tiny | 16 + 88 | 20 / 10.1 | 0.92 s | 0.58 s |\n"
    )


def test_a_gpu_that_is_none(
    bundle: Path, phone: Phone, script: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = ["push", str(bundle), "--quiet", "--run", "--prompt", "Hi", "--runner", str(script)]
    assert main(run) == 0
    assert capfd.readouterr() == ("Hello.\n", "")
    assert main([*run, "--backend", "gpu"]) == 1
    assert capfd.readouterr().err.startswith(
        "error: litert_lm_main on PIXEL, the GPU accelerator could not be loaded, and it computed "
    )


def test_a_run_that_is_interrupted(
    server: AdbServer, loaded: Phone, smollm2_bundle: Path, tmp_path: Path
) -> None:
    server.phones["PIXEL"] = loaded
    program = write_program(tmp_path / "program", advanced=False)
    with subprocess.Popen(
        [sys.executable, "-m", "cli", "push", str(smollm2_bundle), "--quiet", "--run",
         "--prompt", "Write a long story about a lighthouse.", "--runner", str(program)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.read(1)
        assert is_running(loaded, smollm2_bundle.name)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (
        130, "error: interrupted, at your request, run it again\n"
    )  # fmt: skip
    assert "prompt.txt" not in names(loaded)
    until(lambda: not is_running(loaded, smollm2_bundle.name))  # Android hangs up on it


def is_running(phone: Phone, name: str) -> bool:
    """Whether a program on the device has the model."""
    done = subprocess.run(["ps", "-wweo", "args"], capture_output=True, text=True, check=True)
    return f"--model_path={there(phone, name)}" in done.stdout


def test_what_a_runner_cannot_do(
    bundle: Path, phone: Phone, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    plain = ["--runner", write_program(tmp_path / "plain", advanced=False)]
    assert fails(capfd, bundle, "--run", "--prompt", "Hi", "--threads", "2", *plain).startswith(
        "--threads, the runner on PIXEL does not read its --num_cpu_threads, "
    )
    assert fails(capfd, bundle, "--bench", "--new-tokens", "3", *plain).startswith(
        "--prompt-tokens and --new-tokens, the runner on PIXEL takes none, "
    )


def test_a_runner_that_does_not_start(
    bundle: Path, phone: Phone, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = [bundle, "--run", "--prompt", "Hi"]
    path = f"PIXEL:{FOLDER}/litert_lm_main"
    assert fails(capfd, *run).startswith(f"{path}, the engine is not there, get litert_lm_main.")
    folder = tmp_path / "with libraries"
    folder.mkdir()
    script = folder / "litert_lm_main.android_arm64"
    missing = 'CANNOT LINK EXECUTABLE "./litert_lm_main": library "libX.so" not found'
    script.write_text(f"#!/bin/sh\necho '{missing}' >&2\nexit 1\n")
    (folder / "libLiteRtGpuAccelerator.so").write_bytes(b"#!not for this test")
    (folder / "libother.so").touch()
    assert fails(capfd, *run, "--runner", script).startswith(
        f"{path}, it does not start ({missing})"
    )
    assert names(phone) == ["libLiteRtGpuAccelerator.so", "litert_lm_main"]
    script.write_text("#!/bin/sh\necho hello\n")
    assert "(it is not LiteRT-LM's, or older than 0.9)" in fails(capfd, *run, "--runner", script)
    assert fails(capfd, *run, "--runner", bundle).startswith(
        f"--runner {bundle}, it is no program for Android, "
    )
    assert names(phone) == ["libLiteRtGpuAccelerator.so", "litert_lm_main"]  # no model


@pytest.mark.parametrize("advanced", [False, True])
def test_an_engine_that_fails(
    advanced: bool, phone: Phone, tmp_path: Path, capfd: pytest.CaptureFixture[str], bundle: Path
) -> None:
    """The bundle's header is whole, so it is pushed; the engine there reads further."""
    damaged = tmp_path / "damaged.litertlm"
    content = bundle.read_bytes()
    damaged.write_bytes(content[: len(content) // 2] + bytes(len(content) - len(content) // 2))
    program = write_program(tmp_path / "program", advanced=advanced)
    said = fails(capfd, damaged, "--run", "--prompt", "Hi", "--runner", program)
    print(said)
    assert said.startswith("litert_lm_main on PIXEL, ")
    assert said.endswith(", see its log with --verbose")
    assert "prompt.txt" not in names(phone)
