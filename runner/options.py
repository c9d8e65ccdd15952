"""What the user may choose for a chat."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from converter.errors import OptionError

if TYPE_CHECKING:
    from runner.conversation import Conversation, Tools
    from runner.engine import Model, Sampling
    from runner.schema import Schema


@dataclass(frozen=True)
class ChatOptions:
    """How a model runs and answers; the names are those of the command line's options.

    Attributes:
        system: the system message.
        raw: no chat template: each prompt is continued as it stands.
        thinking: before the answer, or not; None leaves it to the model's template.
        max_tokens: the most of an answer; thoughts are not counted.
        temperature, top_k, top_p, seed: None leaves what the model's file says.
        backend: cpu or gpu.
        threads: for cpu; None leaves the engine's choice.
        drafts: use the file's drafter, if there is one, where it changes no answer.
        keep_packed: leave the weights as the engine packs them beside the model, for later starts.
        verbose: let the engine's own log through, to stderr.
    """

    system: str | None = None
    raw: bool = False
    thinking: bool | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    seed: int | None = None
    backend: Literal["cpu", "gpu"] = "cpu"
    threads: int | None = None
    drafts: bool = True
    keep_packed: bool = False
    verbose: bool = False

    def check(self) -> None:
        """Raise OptionError where one of them would leave another without effect."""
        if self.raw:
            thinking = "--no-thinking" if self.thinking is False else "--thinking"
            for option, value in (("--system", self.system), (thinking, self.thinking)):
                if value is not None:
                    raise OptionError(
                        option, "there is no chat template to carry it with --raw", "leave one out"
                    )
        if self.threads is not None and self.backend != "cpu":
            raise OptionError("--threads", f"has no effect on {self.backend}", "leave it out")
        if self.keep_packed and self.backend != "cpu":
            raise OptionError("--keep-packed", f"has no effect on {self.backend}", "leave it out")

    def model(self, path: Path, benchmark: bool = False) -> Model:
        """The model in the file `path`, which a `with` statement loads; raises as `Model` does."""
        from runner.engine import Model

        return Model(
            path,
            backend=self.backend,
            threads=self.threads,
            verbose=self.verbose,
            benchmark=benchmark,
            keep_packed=self.keep_packed,
        )

    def sampling(self) -> Sampling:
        from runner.engine import Sampling

        return Sampling(self.temperature, self.top_k, self.top_p, self.seed)

    def start(
        self, model: Model, tools: Tools | None = None, json_schema: Schema | None = None
    ) -> Conversation:
        """A conversation with a loaded model; one without a chat template continues texts.

        Args:
            tools: what the model may call.
            json_schema: what the answers are JSON of.

        Raises:
            OptionError: the model cannot do what was asked for.
        """
        sampling = self.sampling()
        needs_template = self.system is not None or self.thinking or tools is not None
        if self.raw or not (model.is_chat or needs_template):
            return model.completion(
                sampling=sampling,
                max_tokens=self.max_tokens,
                json_schema=json_schema,
                drafts=self.drafts,
            )
        return model.conversation(
            system=self.system,
            sampling=sampling,
            max_tokens=self.max_tokens,
            thinking=self.thinking,
            tools=tools,
            json_schema=json_schema,
            drafts=self.drafts,
        )
