"""The entry of a model in the list of Google's AI Edge Gallery.

The app reads a JSON of this shape from its project's `model_allowlists/`, or, where there is one,
from /data/local/tmp/model_allowlist_test.json on the phone: the classes ModelAllowlist and
AllowedModel in data/ModelAllowlist.kt and loadModelAllowlist() in ModelManagerViewModel.kt of
github.com/google-ai-edge/gallery, as of August 2026; the lists up to 1_0_20.json have these keys.
A model that its user imports (From Hugging Face, or a file) has the same settings in a dialog.
"""

from __future__ import annotations

from typing import Any

from converter.litertlm.inspection import Bundle

FILE = "model_allowlist.json"


def allowlist(bundle: Bundle, repo_id: str, description: str) -> dict[str, Any]:
    """A list with one model in it, which will be in the repository `repo_id`."""
    model: dict[str, Any] = {
        "name": bundle.path.stem,
        "modelId": repo_id,
        "modelFile": bundle.path.name,
        # The revision in the address of a download: a branch does as well as a commit, and its name
        # is known before the commit that holds this file.
        "commitHash": "main",
        "description": description,
        "sizeInBytes": bundle.nbytes,
        "defaultConfig": sampling(bundle),
        "taskTypes": ["llm_chat", "llm_prompt_lab"] if is_chat(bundle) else ["llm_prompt_lab"],
    }
    if tokens := bundle.metadata.max_num_tokens:
        model["defaultConfig"]["maxTokens"] = tokens
    if found := accelerators(bundle):
        model["defaultConfig"]["accelerators"] = ",".join(found)
    if is_chat(bundle) and bundle.metadata.supports_thinking:
        model["capabilities"] = ["llm_thinking"]
        model["capabilityToTaskTypes"] = {"llm_thinking": ["llm_chat"]}
    return {"models": [model]}


def is_chat(bundle: Bundle) -> bool:
    """Whether it has a chat template; a base model has one that passes its text through."""
    return not str(bundle.system.get("chat template", "")).startswith("none")


def sampling(bundle: Bundle) -> dict[str, Any]:
    """How the bundle says that it is sampled, in the app's words, as far as it says it."""
    said = bundle.metadata.sampler_params
    if said.type in (said.TYPE_UNSPECIFIED, said.GREEDY):
        return {"topK": 1} if said.type == said.GREEDY else {}
    # A float of 32 bits, as it was written: 0.95 and not 0.949999988079071.
    found = {"topK": said.k, "topP": _short(said.p), "temperature": _short(said.temperature)}
    return {key: value for key, value in found.items() if value}


def accelerators(bundle: Bundle) -> list[str]:
    """What the graph's layout is for, the better first; nothing where the bundle does not say."""
    return {"gpu": ["gpu", "cpu"], "cpu": ["cpu"]}.get(str(bundle.system.get("target")), [])


def _short(value: float) -> float:
    return float(f"{value:.6g}")
