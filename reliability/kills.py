"""Kill conversions at random moments; afterwards the old file is there, or the new one, whole.

    venv/bin/python -m reliability.kills                  # 200 kills and more, a quarter of an hour
    venv/bin/python -m reliability.kills --kills 4 --tiny # of each source and scheme; in CI

Every source (a folder, a GGUF, a hub with weights, a hub with a file that is converted already) is
converted, in two schemes, over an older file, and the whole process group is killed with SIGKILL
after a random part of the time that a conversion takes. Counted as a loss: an output that is
neither file bit for bit, one whose receipt does not belong to it, a file that nobody cleans up. The
last line is one JSON document.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from benchmarks.measure import commit, guarded, machine, note, run
from converter.receipt import hash_parts
from converter.version import __version__
from tests.conftest import real_model
from tests.hub_server import HubServer
from tests.tiny_models import make_model, write_tokenizer

ROOT = Path(__file__).resolve().parent.parent
SCHEMES = ("dynamic_int8", "dynamic_int4")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=30, help="of each source and scheme")
    parser.add_argument("--tiny", action="store_true", help="random weights instead of SmolLM2's")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    random.seed(args.seed)
    with tempfile.TemporaryDirectory(prefix="litert-lm-kills-") as folder:
        results = measure(Path(folder), args.kills, args.tiny)
    totals = sum((Counter(found) for found in results.values()), Counter[str]())
    for name, found in results.items():
        print(f"{name:40} {dict(found)}")
    losses = totals["mixture"] + totals["wrong receipt"] + totals["left behind"]
    document = {
        "reliability": "kills",
        "litert_lm_cli": __version__,
        "commit": commit(),
        "machine": machine("huggingface_hub", "numpy"),
        "seed": args.seed,
        "kills": totals["killed"],
        "losses": losses,
        "by_source": results,
    }
    print(json.dumps(document))
    if losses:
        raise SystemExit(1)


def measure(work: Path, kills: int, tiny: bool) -> dict[str, dict[str, int]]:
    """What became of `kills` kills of every source in every scheme."""
    folder = work / "source"
    if tiny:
        make_model("llama").save_pretrained(folder)
        write_tokenizer(folder)
    else:
        run([sys.executable, "-m", "benchmarks.sources", "smollm2-135m", folder])
    shutil.copytree(folder, work / "hub" / "org" / "weights")
    (work / "hub" / "org" / "converted").mkdir()
    convert(folder, work / "ready", "fp16").wait()
    [ready] = (work / "ready").glob("*.litertlm")
    ready.rename(work / "hub" / "org" / "converted" / "ready.litertlm")
    sources = {"folder": str(folder), "hub": "org/weights", "converted on the hub": "org/converted"}
    if not tiny:
        sources["GGUF"] = str(real_model("smollm2-135m-instruct-q4_1.gguf"))
    results = {}
    with HubServer(work / "hub") as hub:
        os.environ["HF_ENDPOINT"] = hub.url
        for title, source in sources.items():
            for scheme in SCHEMES if title != "converted on the hub" else (None,):
                name = f"{title}, {scheme}" if scheme else title
                note(name)
                os.environ["LITERT_LM_MODELS"] = str(work / "models")
                results[name] = dict(kill_often(source, work / name, scheme, kills))
                shutil.rmtree(work / "models", ignore_errors=True)
    return results


def kill_often(source: str, out: Path, scheme: str | None, kills: int) -> Counter[str]:
    """Convert over an older file, and kill it; how often each ending was seen."""
    found: Counter[str] = Counter()
    duration = statistics.median(timed(source, out, scheme) for _ in range(3))
    [output] = out.glob("*.litertlm")
    new, receipt = digest(output), output.with_suffix(".json")
    pair = output.read_bytes(), receipt.read_bytes()
    # An older file of the same name, with its receipt.
    changed = bytearray(pair[0])
    changed[-1] ^= 1
    output.write_bytes(changed)
    old = digest(output)
    paper = json.loads(pair[1])
    paper["output"]["parts"] = hash_parts(output)
    older = bytes(changed), json.dumps(paper).encode()
    for _ in range(kills):
        output.write_bytes(older[0])
        receipt.write_bytes(older[1])
        if scheme is None or source.startswith("org/"):  # the download is a part of it
            shutil.rmtree(Path(os.environ["LITERT_LM_MODELS"]), ignore_errors=True)
        process = convert(source, out, scheme)
        time.sleep(random.uniform(0, duration * 1.1))
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            found["killed"] += 1
        else:
            found["too late"] += 1
        process.wait()
        there = digest(output)
        found["old" if there == old else "new" if there == new else "mixture"] += 1
        names = {path.name for path in out.iterdir()} - {output.name, receipt.name}
        found["leaving something"] += bool(names)
        if command("verify", str(output)).wait() != 0:
            found["wrong receipt"] += 1
    convert(source, out, scheme).wait()
    if {path.name for path in out.iterdir()} != {output.name, receipt.name}:
        found["left behind"] += 1
    if digest(output) != new:
        found["mixture"] += 1
    return found


def timed(source: str, out: Path, scheme: str | None) -> float:
    start = time.monotonic()
    if convert(source, out, scheme).wait() != 0:
        raise SystemExit(f"error: {source} cannot be converted")
    return time.monotonic() - start


def convert(source: str | Path, out: Path, scheme: str | None) -> subprocess.Popen[bytes]:
    """A conversion that has just begun, in a process group of its own."""
    chosen = ["--quantize", scheme] if scheme else []
    return command("convert", str(source), "--force", "--quiet", "--output-dir", str(out), *chosen)


def command(*arguments: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "cli", *arguments],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )


def digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


if __name__ == "__main__":
    guarded(main)
