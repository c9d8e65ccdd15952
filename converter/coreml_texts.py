"""The files beside Core ML packages: what runtimes start from, and the tokenizer."""

from __future__ import annotations

from collections.abc import Mapping

from converter.checkpoint.base import Checkpoint
from converter.checkpoint.papers import read_papers
from converter.coreml.decoder_program import Interface
from converter.coreml.meta import (
    COMPILE,
    CONFIG,
    META,
    Description,
    Names,
    compile_sh,
    config_json,
    default_prefix,
    meta_yaml,
)
from converter.coreml_options import CoreMLOptions
from converter.decoder import Attention, DecoderSpec
from converter.errors import SourceError
from converter.litertlm.sampling import checked_sampling
from converter.text.tokenizer import load_tokenizer
from converter.text.tokenizer_files import class_of, tokenizer_files


def names_of(options: CoreMLOptions, model_type: str, chunks: int) -> Names:
    """Of the packages.

    Args:
        chunks: packages that share the layers.
    """
    return Names(
        options.prefix or default_prefix(model_type),
        options.lut_embeddings,
        options.lut_layers,
        options.lut_head,
        0 if options.monolithic else chunks,
    )


def describe(
    checkpoint: Checkpoint,
    name: str,
    spec: DecoderSpec,
    interface: Interface,
    names: Names,
    comments: Mapping[str, str] | None = None,
) -> Description:
    """What meta.yaml and the packages' own metadata are written from.

    Args:
        name: the model's.
        comments: for people, by what they concern.

    Raises:
        SourceError: what the source says of sampling is not what it should be.
    """
    papers = read_papers(checkpoint.files, of_folder=checkpoint.format != "gguf")
    mixers = [layer.mixer for layer in spec.layers if isinstance(layer.mixer, Attention)]
    return Description(
        model=name,
        model_type=str(checkpoint.config["model_type"]),
        names=names,
        interface=interface,
        license=papers.license_name or ", ".join(papers.license) or None,
        has_windows=any(mixer.sliding_window for mixer in mixers),
        sampling=checked_sampling(checkpoint.generation_config, name),
        comments=comments or {},
    )


def texts_beside(
    checkpoint: Checkpoint, described: Description, chosen_template: str | None = None
) -> dict[str, bytes]:
    """Every file beside the packages, by name.

    Args:
        chosen_template: a chat template in place of the source's own, "" for none.

    Raises:
        SourceError: the tokenizer is missing or damaged, or belongs to another model.
        UnsupportedError: it cannot be made into a tokenizer.json.
    """
    tokenizer = load_tokenizer(checkpoint, chat_template=chosen_template)
    rows = sum(described.interface.head_parts)
    if tokenizer.vocab_size > rows:
        raise SourceError(
            f"{described.model}: tokenizer",
            f"has {tokenizer.vocab_size} tokens, the embedding only {rows} rows",
            "use the tokenizer that belongs to this checkpoint",
        )
    files = tokenizer_files(checkpoint, tokenizer, chosen_template)
    pad = checkpoint.config.get("pad_token_id")
    return files | {
        META: meta_yaml(described),
        CONFIG: config_json(
            described.model_type,
            class_of(files),
            tokenizer.eos_token_ids,
            tokenizer.bos_token_id,
            pad if isinstance(pad, int) else None,
        ),
        COMPILE: compile_sh(described.names),
    }
