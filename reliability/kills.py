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
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from benchmarks.measure import guarded, note, run
from reliability.trials import LOSSES, Trial, command, conclude, start
from tests.conftest import real_model
from tests.hub_server import HubServer
from tests.tiny_models import make_model, write_tokenizer

SCHEMES = ("dynamic_int8", "dynamic_int4")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=36, help="of each source and scheme")
    parser.add_argument("--tiny", action="store_true", help="random weights instead of SmolLM2's")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    random.seed(args.seed)
    with tempfile.TemporaryDirectory(prefix="litert-lm-kills-") as folder:
        results = measure(Path(folder), args.kills, args.tiny)
    totals = sum((Counter(found) for found in results.values()), Counter[str]())
    for name, found in results.items():
        print(f"{name:40} {dict(found)}")
    losses = sum(totals[kind] for kind in LOSSES)
    conclude(
        "kills",
        ["huggingface_hub", "numpy"],
        losses,
        seed=args.seed,
        kills=totals["killed"],
        by_source=results,
    )


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
    ready = ["--quantize", "fp16", "--quiet", "--output-dir", str(work / "ready")]
    start(command("convert", str(folder), *ready)).wait()
    [converted] = (work / "ready").glob("*.litertlm")
    converted.rename(work / "hub" / "org" / "converted" / "ready.litertlm")
    sources = {"folder": str(folder), "hub": "org/weights", "converted on the hub": "org/converted"}
    if not tiny:
        sources["GGUF"] = str(real_model("smollm2-135m-instruct-q4_1.gguf"))
    results = {}

    def forget_downloads() -> None:  # they are a part of what is killed
        shutil.rmtree(work / "models", ignore_errors=True)

    with HubServer(work / "hub") as hub:
        os.environ["HF_ENDPOINT"] = hub.url
        for title, source in sources.items():
            for scheme in SCHEMES if title != "converted on the hub" else (None,):
                name = f"{title}, {scheme}" if scheme else title
                note(name)
                os.environ["LITERT_LM_MODELS"] = str(work / "models")
                results[name] = dict(
                    kill_often(Trial(source, work / name, scheme, forget_downloads), kills)
                )
                shutil.rmtree(work / "models", ignore_errors=True)
    return results


def kill_often(trial: Trial, kills: int) -> Counter[str]:
    """Convert over an older file, and kill it; how often each ending was seen."""
    found: Counter[str] = Counter()
    for _ in range(kills):
        trial.restore()
        process = trial.start()
        time.sleep(random.uniform(0, trial.seconds * 1.1))
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            found["killed"] += 1
        else:
            found["too late"] += 1
        process.wait()
        found.update(trial.judge())
        found["leaving something"] += bool(trial.leftovers())
    trial.start().wait()
    found["left behind"] += bool(trial.leftovers())
    found["mixture"] += "new" not in trial.judge()
    return +found


if __name__ == "__main__":
    guarded(main)
