"""A model card: what the hub shows of a model, from its receipt and its bundle.

Nothing stands in it that nobody knows: no licence that the source does not state, no figure that
was not measured. The front matter is the hub's (huggingface.co/docs/hub/model-cards); apps find
bundles by `library_name: litert-lm`.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from typing import Any

from converter.checkpoint.papers import Papers, papers_of
from converter.checkpoint.sources import DEMO_ID
from converter.litertlm.inspection import Bundle
from converter.receipt import origins_of
from converter.weights.quantization import SCHEMES
from publish.figures import Figures
from publish.gallery import FILE, accelerators, is_chat, sampling
from publish.names import is_repo_id

_FLOATS = ("fp32", "fp16")
_LAYOUTS = {
    ("cpu",): "for CPUs: what is read of the KV cache follows what is in use",
    ("gpu", "cpu"): "for GPUs; CPUs run it more slowly",
    (): "not stated in the file",
}
# Backends in Kotlin and Swift, by what is best; none where the file does not say.
_BACKENDS = {
    "cpu": (", backend = Backend.CPU()", ", backend: .cpu()"),
    "gpu": (", backend = Backend.GPU()", ", backend: .gpu"),
    None: ("", ""),
}
_HUB = "https://huggingface.co"
_DOCS = "https://ai.google.dev/edge/litert-lm"
# Of underscores, those that are not within a word.
_SPECIAL = re.compile(r"([\\`*\[\]<>#|~&]|(?<![^\W_])_|_(?![^\W_]))")
_LINK = re.compile(r"https?://[^\s<>()\"\\]+")


def card(
    bundle: Bundle,
    receipt: Mapping[str, Any],
    figures: Figures | None,
    sha256: str,
    repo_id: str,
) -> str:
    """README.md of a package.

    Args:
        receipt: what `read_receipt` read, without names of local folders.
        sha256: of the bundle.
        repo_id: where it will be.
    """
    sections = [
        _front_matter(receipt),
        f"# {_plain(bundle.path.stem)}",
        _introduction(receipt),
        _table(_facts(bundle, receipt, sha256)),
        "## Licence",
        *_licences(receipt),
    ]
    if figures is not None:
        sections += ["## Figures", *_measured(figures)]
    sections += [
        "## Run it",
        *_how_to_run(bundle, repo_id),
        "## How it was made",
        _making(bundle, receipt),
    ]
    return "\n\n".join(sections) + "\n"


def texts_of(receipt: Mapping[str, Any]) -> list[dict[str, str]]:
    """The licences and notices of all that it was made of, by their names here."""
    adapters = len(_adapters(receipt))
    marks = ("", *(f"adapter{i + 1}-" for i in range(adapters)), "drafter-")
    return [
        {f"{mark}{name}": text for name, text in _papers(entry).texts.items()}
        for mark, entry in zip(marks, origins_of(receipt), strict=False)
    ]


def description(receipt: Mapping[str, Any]) -> str:
    """One line about a model, in Markdown."""
    return f"{_source(receipt['source'])}{_scheme_of(receipt)}, for LiteRT-LM"


def _front_matter(receipt: Mapping[str, Any]) -> str:
    import yaml

    front: dict[str, Any] = {}
    adapters = _adapters(receipt)
    entries = (receipt["source"], *adapters)
    papers = _papers(receipt["source"])
    all_entries = origins_of(receipt)
    stated = [_identifier(text) for each in all_entries for text in _papers(each).license]
    if stated:
        front["license"] = _one_or_all(list(dict.fromkeys(stated)))
        if "other" in stated and papers.license:
            front["license_name"] = papers.license_name or papers.license[0]
        if _may_link(papers):
            front["license_link"] = papers.license_link
    ids = [found for each in entries if (found := _id_of(each))]
    if ids or papers.base_model:
        front["base_model"] = _one_or_all(ids or list(papers.base_model))
    if ids and not adapters and _scheme(receipt) not in (None, *_FLOATS):
        front["base_model_relation"] = "quantized"
    front |= {
        "library_name": "litert-lm",
        "pipeline_tag": "text-generation",
        "tags": ["litertlm", "on-device"],
    }
    return f"---\n{yaml.safe_dump(front, sort_keys=False, allow_unicode=True)}---"


def _introduction(receipt: Mapping[str, Any]) -> str:
    merged = _adapters(receipt)
    adapters = f" with {' and '.join(map(_source, merged))}" if merged else ""
    made = "as its publisher converted it" if receipt["options"] is None else "converted"
    return (
        f"{_source(receipt['source'])}{adapters}, {made}: one file for [LiteRT-LM]({_DOCS}), which "
        "runs on phones, boards and computers."
    )


def _facts(bundle: Bundle, receipt: Mapping[str, Any], sha256: str) -> dict[str, str]:
    facts = {
        "File": f"{_plain(bundle.path.name)}, {bundle.nbytes / 1e6:,.1f} MB",
        "SHA-256": f"`{sha256}`",
        "Source": _whence(receipt["source"]),
    }
    if merged := _adapters(receipt):
        facts["Merged LoRA adapters"] = "; ".join(map(_whence, merged))
    if drafter := (receipt["options"] or {}).get("drafter"):
        facts["Drafter"] = _whence(drafter)
    if types := (receipt.get("plan") or {}).get("source_types"):
        facts["Weights there"] = _plain(", ".join(map(str, types)))
    if (scheme := _scheme(receipt)) is not None:
        summary = f": {SCHEMES[scheme].summary}" if scheme in SCHEMES else ""
        facts["Quantization"] = f"{_verbatim(scheme)}{summary}"
    tokens = bundle.metadata.max_num_tokens
    memory = bundle.model.run_memory.total_bytes / 1e6
    facts |= {
        "Layout": _LAYOUTS[tuple(accelerators(bundle))],
        "Context": f"{tokens} tokens, prompt and answer together" if tokens else "not stated",
        "Memory": f"{memory:,.0f} MB beside the engine, reckoned from the graph",
        "Chat template": _plain(str(bundle.system.get("chat template", "in the file"))),
        "Sampling": ", ".join(_settings(bundle)) or "not stated",
    }
    check = receipt.get("check")
    if isinstance(check, dict) and check.get("failure") is None:
        facts["Tried"] = _plain(str(check.get("summary")))
    version = (receipt.get("versions") or {}).get("litert-lm-cli", "")
    return facts | {"Converted by": f"litert-lm-cli {_plain(str(version))}"}


def _whence(entry: Mapping[str, Any]) -> str:
    """A model with its file, its commit, and how much of an adapter was taken."""
    found = _source(entry)
    if entry.get("weight", 1) != 1:
        found += f" times {entry['weight']:g}"
    if entry.get("file"):
        found += f", file {_plain(entry['file'])}"
    return f"{found}, commit {_verbatim(entry['commit'])}" if entry.get("commit") else found


def _licences(receipt: Mapping[str, Any]) -> list[str]:
    lines = []
    for each, texts in zip(origins_of(receipt), texts_of(receipt), strict=True):
        papers, where = _papers(each), _source(each)
        if papers.license:
            said = f"states {_verbatim(', '.join(papers.license))}"
            if papers.license_name:
                said += f", {_plain(papers.license_name)}"
            if papers.license_link and _may_link(papers):
                said += f" ([text](<{papers.license_link}>))"
            line = f"{where} {said} in {_plain(str(papers.stated_in))}."
        elif "papers" not in each:
            line = f"What {where} states was not noted when it was converted."
        else:
            line = f"The files of {where} that were converted state no licence."
        if texts:
            names = ", ".join(f"[{_plain(name)}](<{name}>)" for name in texts)
            line += f" With it came {names}."
        lines.append(line)
    if not all(_papers(each).license for each in origins_of(receipt)):
        lines.append("Ask the model's makers what they allow before you pass this file on.")
    else:
        lines.append("Converting a model changes nothing in that: the same terms hold here.")
    return lines


def _measured(figures: Figures) -> list[str]:
    rows = {
        "Perplexity": f"{figures.perplexity:.2f} over {figures.tokens} tokens of "
        f"{_plain(figures.text)}",
        f"A prompt of {figures.prefill_tokens} tokens": f"{figures.prefill_rate:,.0f} tokens/s, "
        f"first token after {figures.first_token_seconds:.2f} s",
        "The answer": f"{figures.decode_rate:,.1f} tokens/s over {figures.decode_tokens} tokens",
    }
    if figures.against is not None:
        rows |= {
            "KL divergence": f"{figures.kl_mean:.4f} mean, {figures.kl_max:.3f} largest, from "
            f"{_plain(figures.against)} in float over {figures.positions} positions",
            "Same likeliest token": f"{figures.top1_agreement:.1%} of them",
        }
    where = f"Measured on {_plain(figures.date)}, on {_plain(figures.machine)}, with "
    return [f"{where}{_plain(figures.versions)}. Speeds are the best of three runs.", _table(rows)]


def _how_to_run(bundle: Bundle, repo_id: str) -> list[str]:
    name = bundle.path.name
    best = next(iter(accelerators(bundle)), None)
    kotlin, swift = _BACKENDS[best]
    values = [best.upper()] if best else []
    values += _settings(bundle)
    if tokens := bundle.metadata.max_num_tokens:
        values.append(f"at most {tokens} tokens")
    chat = (
        "" if is_chat(bundle) else " It is a base model, which completes texts and does not chat."
    )
    return [
        f"What is said of phones and browsers follows [Google's documentation]({_DOCS}), and was "
        f"not tried with this file.{chat}",
        "### Desktop",
        _code(
            "sh",
            f"litert-lm-cli run {repo_id}",
            f"litert-lm run --from-huggingface-repo={repo_id} {shlex.quote(name)}  "
            "# Google's: pip install litert-lm",
        ),
        "### Android",
        "Google AI Edge Gallery: Model Manager, **+**, From Hugging Face, "
        f"`{_HUB}/{repo_id}`{'; in the dialog ' if values else ''}{', '.join(values)}. "
        f"[{FILE}](<{FILE}>) says the same for the app's list of models "
        f"(`adb push {FILE} /data/local/tmp/model_allowlist_test.json`). In an app of yours:",
        _code(
            "kotlin",
            '// implementation("com.google.ai.edge.litertlm:litertlm-android:latest.release")',
            f"val engine = Engine(EngineConfig(modelPath = path{kotlin}))",
            "engine.initialize()  // takes seconds: not on the main thread",
            'engine.createConversation().use { it.sendMessageAsync("Hello").collect(::print) }',
        ),
        "### iOS",
        "The Swift package `LiteRTLM` of https://github.com/google-ai-edge/LiteRT-LM:",
        _code(
            "swift",
            f"let config = try EngineConfig(modelPath: path{swift}, "
            "cacheDir: NSTemporaryDirectory())",
            "let engine = Engine(engineConfig: config)",
            "try await engine.initialize()",
            "let conversation = try await engine.createConversation()",
            'print(try await conversation.sendMessage(Message("Hello")).toString)',
        ),
        "### Web",
        f"LiteRT-LM's [web API]({_DOCS}/js) (`@litert-lm/core`) is an early preview, for models "
        "that were made for it.",
    ]


def _making(bundle: Bundle, receipt: Mapping[str, Any]) -> str:
    model = "" if _id_of(receipt["source"]) else " MODEL"
    name = f"{bundle.path.stem}.json"
    return "\n\n".join(
        (
            f"[{_plain(name)}](<{name}>) is the receipt: the source's files with their hashes, "
            "the options, the versions, and the hash of every section of the result. It tells "
            "whether a file is still that, and makes the same bytes again:",
            _code(
                "sh",
                f"litert-lm-cli verify {shlex.quote(bundle.path.name)}",
                f"litert-lm-cli convert --from-receipt {shlex.quote(name)}{model}",
            ),
        )
    )


def _source(entry: Mapping[str, Any]) -> str:
    """A model, linked where it is on the hub."""
    repo_id = _id_of(entry)
    name = _plain(repo_id or str(entry["model"]))
    return f"[{name}]({_HUB}/{repo_id})" if repo_id else name


def _id_of(entry: Mapping[str, Any]) -> str | None:
    """Its name on the hub, where it is from there."""
    if entry["kind"] == "demo":
        return DEMO_ID
    is_hub = entry["kind"] == "hub" and is_repo_id(entry["model"])
    return str(entry["model"]) if is_hub else None


def _settings(bundle: Bundle) -> list[str]:
    return [f"{key} {value:g}" for key, value in sampling(bundle).items()]


def _papers(entry: Mapping[str, Any]) -> Papers:
    return papers_of(entry.get("papers")) or Papers()


def _adapters(receipt: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return list((receipt["options"] or {}).get("adapters", []))


def _scheme(receipt: Mapping[str, Any]) -> str | None:
    """None of a bundle that was converted when it was fetched."""
    return str(receipt["options"]["quantize"]) if receipt["options"] else None


def _scheme_of(receipt: Mapping[str, Any]) -> str:
    scheme = _scheme(receipt)
    return "" if scheme is None else f" in {scheme}"


def _identifier(license: str) -> str:
    """A licence as the hub spells it: its identifiers are those of SPDX in lower case, and more."""
    found = license.lower()
    return found if re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", found) else "other"


def _may_link(papers: Papers) -> bool:
    """Whether a licence's link leads somewhere: an address, or a file that is here."""
    link = papers.license_link
    return link is not None and (link in papers.texts or _LINK.fullmatch(link) is not None)


def _one_or_all(values: list[str]) -> str | list[str]:
    return values[0] if len(values) == 1 else values


def _table(rows: Mapping[str, str]) -> str:
    return "\n".join(
        ["| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in rows.items())]
    )


def _code(language: str, *lines: str) -> str:
    return "\n".join([f"```{language}", *lines, "```"])


def _verbatim(text: str) -> str:
    """Text from strangers' files between backticks, in a table too."""
    return "`" + _line(text).replace("`", "'").replace("|", "/") + "`"


def _plain(text: str) -> str:
    """Text from strangers' files in which nothing is Markdown."""
    return _SPECIAL.sub(r"\\\1", _line(text))


def _line(text: str) -> str:
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())
