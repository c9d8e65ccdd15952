"""`litert-lm-cli eval`: what did conversion cost?"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cli.convert import add_fetch_options
from cli.limits import LIMITS
from cli.outputs import FILE_HELP, output_of
from cli.progress import step_progress
from cli.request import Request
from converter.errors import OptionError

if TYPE_CHECKING:
    import numpy as np

    from runner.distance import Course, Difference, Divergence
    from runner.evaluation import Perplexity, Sample
    from runner.questions import Question

    # Of some passages' tokens: as many of each as its context holds, and the logits after each.
    Passages = list[list[int]]
    Reference = Callable[[Passages], tuple[Passages, Iterable[np.ndarray]]]

MIXED = "mixed"


@dataclass(frozen=True)
class Task:
    """What is measured.

    Attributes:
        text: what is scored, and compared over its beginning, or its parts' beginnings.
        tokens: over how many models are compared.
        questions: ask these.
        threads: None leaves the engine's choice.
    """

    text: str
    tokens: int
    questions: Sequence[Question] = ()
    threads: int | None = None
    quiet: bool = False


@dataclass(frozen=True)
class Measured:
    """What one model makes of a task.

    Attributes:
        right: which questions it answered rightly.
        passages: the tokens over which it is compared.
        logits: what it says after each token of some passages, `(vocabulary,)`.
    """

    perplexity: Perplexity
    sample: Sample
    right: Sequence[bool]
    passages: Passages
    logits: Callable[[Passages], Iterable[np.ndarray]]


@dataclass(frozen=True)
class Evaluation:
    """What was found of a model, and of another one at the same positions.

    Attributes:
        courses: of each where it was compared, with a reference or with the other one.
        has_reference: whether there is one.
        questions: what both were asked.
    """

    first: Measured
    second: Measured | None
    courses: Sequence[Course]
    has_reference: bool
    questions: Sequence[Question]

    @property
    def divergence(self) -> Divergence | None:
        """Of the first model from the reference."""
        return self.courses[0].summary() if self.has_reference else None

    def differences(self) -> dict[str, Difference]:
        """How much larger figures are with the second model, the one that decides first."""
        from runner.distance import paired_difference

        one, other = self.courses
        found = {}
        if self.has_reference:
            found["kl"] = paired_difference(one.divergences, other.divergences)
        found["likelihood"] = paired_difference(one.likelihoods, other.likelihoods)
        return found

    def better(self) -> int | None:
        """Which one is: 0 or 1; None where the text shows no difference."""
        [name, difference], *_ = self.differences().items()
        if not difference.shows:
            return None
        return int((difference.mean < 0) == (name == "kl"))

    def right_alone(self) -> tuple[int, int]:
        """How many questions only the first one answers rightly, and only the second one."""
        assert self.second is not None
        pairs = list(zip(self.first.right, self.second.right, strict=True))
        return pairs.count((True, False)), pairs.count((False, True))


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "eval",
        help="measure what conversion cost: perplexity, and the distance from the source",
        description="Measure a .litertlm file in the engine, or Core ML packages in numpy: "
        "perplexity on a text, a greedy sample, speed; with --against how far each next token's "
        "distribution is from the source's in float; and with --versus which of two is better.",
    )
    parser.add_argument(
        "file",
        metavar="FILE",
        type=Path,
        help=f"{FILE_HELP}, or one .mlpackage; packages are for small models",
    )
    parser.add_argument(
        "--against",
        metavar="SOURCE",
        help="compare with this model in float: whatever convert takes, or a .litertlm file",
    )
    parser.add_argument(
        "--engine",
        choices=("direct", "torch"),
        default="direct",
        help="what runs SOURCE: our fp32 graph (direct, default), or transformers (torch; needs "
        "./setup --reference)",
    )
    parser.add_argument(
        "--text",
        type=Path,
        metavar="FILE",
        help="a text in UTF-8, or mixed: eight kinds from prose to code (default: the beginning of "
        "William Morris, News from Nowhere)",
    )
    parser.add_argument(
        "--tokens",
        type=LIMITS["tokens"],
        metavar="N",
        help="over how many tokens of the text models are compared (default: 512); so many see "
        "each other at most",
    )
    parser.add_argument(
        "--versus",
        metavar="OTHER",
        type=Path,
        help="measure this model of the same tokenizer, too, and say which is better, or that the "
        "text shows no difference: what FILE takes",
    )
    parser.add_argument(
        "--questions",
        action="store_true",
        help="ask 100 short questions, twenty of five kinds each; takes a minute or more",
    )
    parser.add_argument(
        "--threads", type=LIMITS["threads"], metavar="N", help="default: the engine's choice"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--revision", metavar="REV", help="of SOURCE: branch, tag or commit")
    add_fetch_options(parser)
    return parser


def main(args: argparse.Namespace) -> None:
    from runner.evaluation import COMPARED
    from runner.questions import read_questions

    if args.engine == "torch" and not args.against:
        raise OptionError("--engine torch", "has no effect without --against", "name the source")
    if args.revision is not None and not args.against:
        raise OptionError("--revision", "has no effect without --against", "name the source")
    if args.tokens is not None and not (args.against or args.versus):
        raise OptionError("--tokens", "has no effect", "add --against or --versus")
    file = output_of(args.file)
    versus = None if args.versus is None else output_of(args.versus)
    for name in ("threads", "questions"):
        if getattr(args, name) and any(each.is_dir() for each in (file, versus) if each):
            raise OptionError(
                f"--{name}", "is for the engine, which runs no packages", "leave it out"
            )
    task = Task(
        text=_read(args.text),
        tokens=args.tokens or COMPARED,
        questions=read_questions() if args.questions else (),
        threads=args.threads,
        quiet=args.quiet,
    )
    against = None
    if args.against:
        against = Request(
            args.against, revision=args.revision, offline=args.offline, quiet=args.quiet, asks=True
        )
    found = evaluate(file, task, against, args.engine, versus)
    if args.json:
        import json

        print(json.dumps(_as_json(found)))
    else:
        print("\n".join(_lines(args, found)))


def evaluate(
    file: Path,
    task: Task,
    against: Request | None,
    engine: str = "direct",
    versus: Path | None = None,
) -> Evaluation:
    """What a model makes of a task, and how far it is from another one in float.

    Args:
        file: a `.litertlm` file, a folder of Core ML packages, or one of them.
        against: the model in float; None compares with nothing.
        engine: what runs that.
        versus: another one like `file`.

    Raises:
        LiteRTLMError: see `converter.errors`.
    """
    from runner.distance import courses

    with ExitStack() as stack:
        # First of all, as this is what may be refused.
        reference = _reference(against, engine, stack) if against else None
        first = _measured(file, task)
        second = None
        if versus is not None:
            second = _measured(versus, task)
            if first.passages != second.passages:
                raise OptionError(
                    f"--versus {versus}",
                    "its tokens of the text are others",
                    "compare models of one tokenizer, with contexts as long",
                )
        both = [first] if second is None else [first, second]
        found: list[Course] = []
        if reference is not None or second is not None:
            passages, theirs = first.passages, None
            if reference is not None:
                passages, theirs = reference(passages)
            tell, count = step_progress("comparing", task.quiet), sum(map(len, passages))
            found = courses(
                [each.logits(passages) for each in both],
                theirs,
                passages,
                lambda done: tell(done, count),
            )
    return Evaluation(first, second, found, reference is not None, task.questions)


def _measured(file: Path, task: Task) -> Measured:
    from runner.evaluation import compared_passages

    if file.is_dir():
        from runner import coreml_evaluation
        from runner.coreml_model import CoreMLModel

        packages = CoreMLModel(file)
        said = coreml_evaluation.sample(packages, task.text)
        tell = step_progress("scoring", task.quiet)
        return Measured(
            coreml_evaluation.measure_perplexity(packages, task.text, tell),
            said,
            (),
            compared_passages(packages, task.text, task.tokens),
            lambda passages: chain.from_iterable(map(packages.logits, passages)),
        )
    from runner.engine import Model
    from runner.evaluation import graph_logits, measure_perplexity, sample
    from runner.questions import ask

    with Model(file, threads=task.threads, benchmark=True) as model:
        return Measured(
            measure_perplexity(model, task.text, step_progress("scoring", task.quiet)),
            sample(model, task.text),
            ask(model, task.questions, step_progress("asking", task.quiet)),
            compared_passages(model, task.text, task.tokens),
            lambda passages: graph_logits(file, *passages),
        )


def _reference(request: Request, engine: str, stack: ExitStack) -> Reference:
    """What says the source's logits; its files are gone when `stack` is left."""
    from cli.obtain import in_float, require_reference, source_checkpoint
    from converter.output.scratch import scratch_folder

    folder = stack.enter_context(scratch_folder("litert-lm-eval-"))
    if engine == "torch":
        from cli.progress import stage_progress
        from converter.torch.reference import check_can_run, next_token_logits

        require_reference(request)
        checkpoint = stack.enter_context(source_checkpoint(request))
        check_can_run(checkpoint, request.model)

        def by_transformers(passages: Passages) -> tuple[Passages, Iterable[np.ndarray]]:
            def logits() -> Iterator[np.ndarray]:
                for tokens in passages:
                    with stage_progress(request.quiet) as tell:
                        found = next_token_logits(checkpoint, request.model, tokens, folder, tell)
                    yield from found

            return passages, logits()

        return by_transformers

    from runner.evaluation import reference_logits

    return partial(reference_logits, in_float(request, folder))


def _as_json(found: Evaluation) -> dict[str, Any]:
    from runner.distance import sign_test

    first, second = found.first, found.second
    told: dict[str, Any] = {
        "perplexity": first.perplexity.perplexity,
        "tokens": first.perplexity.tokens,
        "repetition": first.sample.repetition,
        "prefill_tokens_per_second": first.sample.prefill_rate,
        "decode_tokens_per_second": first.sample.decode_rate,
    }
    if found.divergence is not None:
        told |= asdict(found.divergence)
    if found.questions:
        told |= {"asked": len(found.questions), "right": sum(first.right)}
        told["right_by_kind"] = _right_by_kind(found.questions, first.right)
    if second is not None:
        differences = found.differences()
        other: dict[str, Any] = {"perplexity": second.perplexity.perplexity}
        if found.has_reference:
            other |= asdict(found.courses[1].summary())
        other |= {f"{name}_difference": asdict(value) for name, value in differences.items()}
        if found.questions:
            other["right"] = sum(second.right)
            other["right_alone"] = list(found.right_alone())
            other["p"] = sign_test(*found.right_alone())
        better = found.better()
        other["better"] = None if better is None else ("first", "second")[better]
        told["versus"] = other
    return told


def _lines(args: argparse.Namespace, found: Evaluation) -> list[str]:
    from cli.inspect import printable
    from runner.distance import sign_test

    first, second = found.first, found.second
    lines = [
        f"perplexity  {_ppl(first)}",
        _speed(first.sample),
        f"repetition  {first.sample.repetition:.0%} of what it says greedily:",
        f"  {printable(' '.join(first.sample.text.split()))}",
    ]
    if found.questions:
        kinds = _right_by_kind(found.questions, first.right)
        by_kind = ", ".join(f"{kind} {count}" for kind, count in kinds.items())
        lines.append(f"questions   {sum(first.right)} of {len(found.questions)} right: {by_kind}")
    if found.divergence is not None:
        count = found.divergence.positions
        lines += [
            f"against {printable(args.against)} in float, {count} positions",
            *_distance(found.divergence),
        ]
    if second is None:
        return lines
    lines += [f"versus {printable(str(args.versus))}", f"  perplexity  {_ppl(second)}"]
    if found.has_reference:
        lines += _distance(found.courses[1].summary())
    names = {"kl": "KL divergence", "likelihood": "log likelihood"}
    for name, value in found.differences().items():
        lines.append(
            f"  {names[name]}, its less FILE's at the same positions: {value.mean:+.4f} "
            f"({value.low:+.4f} to {value.high:+.4f}, 95 %)"
        )
    if found.questions:
        here, there = found.right_alone()
        lines.append(
            f"  questions  {sum(second.right)} right; {here} by FILE alone, {there} by this one "
            f"alone (p = {sign_test(here, there):.2f})"
        )
    better = found.better()
    name = "no difference that this text shows"
    if better is not None:
        name = f"{printable(str((args.file, args.versus)[better]))} is better"
    return [*lines, f"verdict     {name}"]


def _ppl(measured: Measured) -> str:
    return f"{measured.perplexity.perplexity:.3f} over {measured.perplexity.tokens} tokens"


def _distance(found: Divergence) -> list[str]:
    return [
        f"  KL divergence  {found.kl_mean:.4f} mean, {found.kl_median:.4f} median, "
        f"{found.kl_99:.3f} at 99 %, {found.kl_max:.3f} largest",
        f"  same likeliest token  {found.top1_agreement:.1%}",
    ]


def _right_by_kind(questions: Sequence[Question], right: Sequence[bool]) -> dict[str, int]:
    kinds: dict[str, int] = {}
    for question, is_right in zip(questions, right, strict=True):
        kinds[question.kind] = kinds.get(question.kind, 0) + is_right
    return kinds


def _speed(said: Sample) -> str:
    if said.prefill_rate is None or said.decode_rate is None:
        return "speed       not measured: numpy ran it, each result rounded to float16"
    return f"speed       prefill {said.prefill_rate:.0f}, decode {said.decode_rate:.1f} tokens/s"


def _read(path: Path | None) -> str:
    from runner.evaluation import TEXT, TEXTS

    path = TEXTS if path == Path(MIXED) else path or TEXT
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "is not UTF-8"
        raise OptionError(f"--text {path}", why, "give a text file in UTF-8") from error
