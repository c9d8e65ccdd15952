"""The pipeline of the second target: a checkpoint in, a folder of Core ML packages out.

    checkpoint --config--> Family --spec--> functions --records--> plan
        `------rows, a block at a time---> WeightStream ---> AtomicFolder, at the planned offsets

As for the first target (`converter.base`), the plan fixes every byte's place before the first
weight is streamed. Functions of a part share its records: a weight is stored once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

from converter.checkpoint.base import Checkpoint
from converter.checkpoint.files import PositionedFile
from converter.checkpoint.papers import read_papers
from converter.coreml.chunks import layer_bytes, settle_chunks, settle_head
from converter.coreml.decoder_program import (
    Interface,
    states_of,
)
from converter.coreml.limits import (
    check_context,
    check_groups,
    check_package,
    check_states,
    notes,
)
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
    usual_head_parts,
)
from converter.coreml.package import MANIFEST, MODEL, WEIGHTS, manifest
from converter.coreml.words import check_words, trace_of_scale
from converter.coreml_layout import PackageLayout, Part, WeightFiles, is_palettized
from converter.coreml_options import AUTO_SCALE, CoreMLOptions
from converter.decoder import Attention, DecoderSpec
from converter.errors import UnsupportedError
from converter.families.base import Family
from converter.litertlm.sampling import checked_sampling
from converter.network import Network, check_vocabulary, read_network
from converter.output.atomic_file import Seal
from converter.output.atomic_folder import AtomicFolder
from converter.preflight import Verdict, fp16_scale_for, preflight
from converter.receipt import why_not_replaced
from converter.registry import text_model_type
from converter.text import background
from converter.text.tokenizer import load_tokenizer
from converter.text.tokenizer_files import class_of, pad_token_id, tokenizer_files
from converter.weights.planned_weight import PlannedWeight
from converter.weights.row_format import Clip
from converter.weights.stream import Progress, WeightStream

_COPIED_AT_ONCE = 1 << 20  # bytes


@dataclass(frozen=True)
class CoreMLPlan:
    """Everything that is known before the first weight is streamed.

    Attributes:
        described: names of the packages, and what runtimes are told.
        scale: what the residual stream is multiplied with, so that float16 can carry it.
        found: what a user should know about the weights, by what it concerns.
        notes: what is taken, and may be slow or surprise.
        texts: files beside the packages, by name, as paths where they are copied; waits for their
            proof.
    """

    family: Family
    spec: DecoderSpec
    described: Description
    scale: float
    parts: tuple[Part, ...]
    weights: tuple[PlannedWeight, ...]
    found: Mapping[str, str]
    notes: tuple[str, ...]
    texts: background.Work[Mapping[str, bytes | Path]]

    @property
    def interface(self) -> Interface:
        """What all functions have in common."""
        return self.described.interface

    @property
    def weights_nbytes(self) -> int:
        """What is streamed."""
        return sum(weight.nbytes for weight in self.weights)

    @property
    def packages_nbytes(self) -> int:
        """Of all packages."""
        return sum(part.nbytes for part in self.parts)


class CoreMLConverter:
    """Converts one checkpoint to packages.

    Raises (from `plan` and `convert`):
        OptionError, SourceError, UnsupportedError, OutputError: see `converter.errors`.
    """

    def __init__(self, checkpoint: Checkpoint, name: str, options: CoreMLOptions) -> None:
        self.checkpoint = checkpoint
        self.name = name
        self.options = options

    @cached_property
    def network(self) -> Network:
        """What is converted."""
        return read_network(self.checkpoint, self.name, self.options.lora)

    @cached_property
    def spec(self) -> DecoderSpec:
        """The network in the context that was chosen, which runtimes and this target can take."""
        context = self.options.context
        self.options.check()
        check_context(context, self.network.family.longest_context, self.name)
        spec = self.network.spec(context)
        check_words(spec, context)
        return spec

    @cached_property
    def model_type(self) -> str:
        """As transformers calls the decoder."""
        return text_model_type(self.checkpoint.config, self.checkpoint.format)

    def convert(self, output: Path, progress: Progress = lambda _: None) -> CoreMLPlan:
        """Write the folder `output`; `progress` is told the bytes of each block written."""
        plan = self.plan(self.measured_scale())
        self.write(plan, output, progress)
        return plan

    @property
    def measures_scale(self) -> bool:
        """Whether the scale is to be measured: where nobody chose one, in a kind that may need it.

        With norms after blocks too, as in Gemma, what blocks add may be of any size: peaks of
        60,000 to 300,000 are known. Without, the largest that is known is 25,000.
        """
        chosen = self.options.fp16_scale
        if chosen is None:
            return self.spec.placement.has_post_norms and trace_of_scale(self.spec) is None
        return chosen == AUTO_SCALE

    def measured_scale(self, progress: Progress = lambda _: None) -> float:
        """What `--fp16-scale` comes to; where it is `auto`, all weights are read for it.

        Args:
            progress: is told how many values more were read.

        Raises:
            UnsupportedError: float16 cannot carry the network under any scale.
        """
        if not self.measures_scale:
            return self.options.fp16_scale or 1.0
        report = preflight(self.network, self.spec, self.options.threads, progress)
        if report.verdict is Verdict.TOO_LARGE:
            raise UnsupportedError(
                self.name,
                f"float16 cannot carry it: {report.reason}, and a scale does not help there",
                "convert it for LiteRT-LM: --target cpu, or as it is: --fp16-scale none",
            )
        return fp16_scale_for(report) or 1.0

    # Plan -----------------------------------------------------------------------------------------

    def plan(self, scale: float = 1.0) -> CoreMLPlan:
        """Validate, make all functions and fix the place of every weight."""
        network, spec, options = self.network, self.spec, self.options
        check_words(spec, options.context, scale)
        interface = self._interface(scale)
        self._check_groups(network.shapes)
        layout = PackageLayout(network, spec, interface, options)
        chunks = () if options.monolithic else self._chunks(layout)
        described = self._describe(interface, len(chunks))
        texts = background.start(
            partial(self._texts, described), f"{self.name}: tokenizer and chat template"
        )
        parts: list[Part] = []
        planned: list[PlannedWeight] = []
        for draft in layout.drafts(described, chunks):
            start = parts[-1].start + parts[-1].layout.nbytes if parts else 0
            part, weights = layout.place(draft, start)
            parts.append(part)
            planned += weights
        if options.monolithic and options.max_chunk_mb is not None:
            check_package(described.names.monolithic, parts[0].nbytes, options.max_chunk_mb)
        return CoreMLPlan(
            family=network.family,
            spec=spec,
            described=described,
            scale=scale,
            parts=tuple(parts),
            weights=tuple(planned),
            found=network.found,
            notes=tuple(self._notes(parts)),
            texts=texts,
        )

    def _interface(self, scale: float) -> Interface:
        options, spec = self.options, self.spec
        states = states_of(spec, options.context)
        check_states(states, options.batch, self.name)
        lut = options.lut_head
        parts = settle_head(
            spec.vocab_size,
            usual_head_parts(self.model_type),
            None if lut is None else lut.group,
            options.argmax,
            f"--lut3 {lut.bits},{lut.group}" if lut else "--lut3 none",
        )
        return Interface(options.context, options.batch, states, parts, options.argmax, scale)

    def _check_groups(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Refuse groups that do not divide matrices; the head's are settled with its parts."""
        rows = {path: shape[0] for path, shape in shapes.items() if is_palettized(shape)}
        for flag, lut, prefix in (
            ("--lut1", self.options.lut_embeddings, "embedding"),
            ("--lut2", self.options.lut_layers, "layers."),
        ):
            if lut is not None:
                of_part = {path: n for path, n in rows.items() if path.startswith(prefix)}
                check_groups(f"{flag} {lut.bits},{lut.group}", lut.group, of_part)

    def _chunks(self, layout: PackageLayout) -> Sequence[range]:
        options = self.options
        lut = options.lut_layers
        return settle_chunks(
            options.chunks,
            layer_bytes(self.spec),
            16 if lut is None else lut.bits,
            options.max_chunk_mb,
            layout.chunk_nbytes,
        )

    def _describe(self, interface: Interface, chunks: int) -> Description:
        options = self.options
        prefix = default_prefix(self.model_type) if options.prefix is None else options.prefix
        papers = read_papers(self.checkpoint.files, self.checkpoint.format != "gguf")
        luts = (options.lut_embeddings, options.lut_layers, options.lut_head)
        return Description(
            model=self.name,
            model_type=self.model_type,
            names=Names(prefix, *luts, chunks),
            interface=interface,
            license=", ".join(papers.license) or None,
            has_windows=any(
                isinstance(layer.mixer, Attention) and layer.mixer.sliding_window
                for layer in self.spec.layers
            ),
            sampling=checked_sampling(self.checkpoint.generation_config, self.name),
        )

    def _texts(self, described: Description) -> Mapping[str, bytes | Path]:
        """The files beside the packages."""
        chosen = self.options.chat_template
        template = None if chosen is None else chosen.text
        tokenizer = load_tokenizer(self.checkpoint, chat_template=template)
        check_vocabulary(tokenizer, self.spec, self.name)
        files = tokenizer_files(self.checkpoint, tokenizer, template)
        return {
            **files,
            META: meta_yaml(described),
            CONFIG: config_json(
                described.model_type,
                class_of(files),
                tokenizer.eos_token_ids,
                tokenizer.bos_token_id,
                pad_token_id(self.checkpoint),
            ),
            COMPILE: compile_sh(described.names),
        }

    def _notes(self, parts: Sequence[Part]) -> list[str]:
        options = self.options
        largest = max(part.nbytes for part in parts if part.kind in ("layers", "monolithic"))
        luts = (options.lut_embeddings, options.lut_layers, options.lut_head)
        groups = {f"--lut{i}": lut.group for i, lut in enumerate(luts, 1) if lut}
        return notes(
            self.spec,
            options.context,
            options.batch,
            groups,
            largest,
            options.argmax,
            options.split_rotate,
        )

    # Stream ---------------------------------------------------------------------------------------

    def write(
        self,
        plan: CoreMLPlan,
        output: Path,
        progress: Progress = lambda _: None,
        seal: Seal | None = None,
    ) -> None:
        """Carry out a plan: the folder appears under its name when it is complete.

        Args:
            seal: see `converter.output.atomic_file`.
        """
        if plan.texts.is_done():
            plan.texts()  # a fault of the template shows before the weights
        with AtomicFolder(output, why_not_replaced) as folder:
            for part in plan.parts:
                folder.write(f"{part.folder}/{MODEL}", part.message)
                folder.write(f"{part.folder}/{MANIFEST}", manifest(part.message))
                weights = f"{part.folder}/{WEIGHTS}"
                folder.create(weights, part.layout.nbytes)
                for offset, content in (*part.layout.heads(), *part.constants):
                    folder.write_at(weights, offset, content)
            self._stream(plan, WeightFiles(folder, plan.parts), progress)
            self.checkpoint.check_unchanged()
            for name, text in plan.texts().items():
                if isinstance(text, Path):
                    _copy(text, folder, name)
                else:
                    folder.write(name, text, is_program=name.endswith(".sh"))
            folder.commit(seal)

    def _stream(self, plan: CoreMLPlan, files: WeightFiles, progress: Progress) -> None:
        """Read, pack and write every weight; the texts are proved beside it."""

        def written(nbytes: int) -> None:
            progress(nbytes)
            if plan.texts.is_done():
                plan.texts()  # a fault of the template ends the stream here

        stream = WeightStream(self.checkpoint, self.name, plan.weights, files, Clip.MSE, written)
        # The stored weights are scaled; a tied head is stored apart.
        scaled = (plan.spec.embedding_scale or 1.0) * plan.scale
        spec = dataclasses.replace(plan.spec, tied_head=False, embedding_scale=scaled)
        stream.run(spec, self.options.threads, beside=plan.texts)


def _copy(source: Path, folder: AtomicFolder, name: str) -> None:
    """Write a file like another one, which may be as large as some tokenizers are."""
    with PositionedFile(source) as file:
        folder.create(name, file.size)
        for start in range(0, file.size, _COPIED_AT_ONCE):
            nbytes = min(_COPIED_AT_ONCE, file.size - start)
            folder.write_at(name, start, file.read_at(start, nbytes))
