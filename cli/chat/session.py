"""A chat that goes on while its model, its options and its history change."""

from __future__ import annotations

import base64
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TextIO

from cli.chat import transcript
from cli.chat.attachments import expanded
from cli.chat.transcript import Chosen, Transcript, text_of
from cli.progress import passing_line
from converter.errors import OptionError, OutputError
from runner.chat import BASE_MODEL_NOTE, KEPT_NOTE, answer, describe

if TYPE_CHECKING:
    from runner.conversation import Conversation, Statistics, Tools
    from runner.engine import Model
    from runner.options import ChatOptions
    from runner.schema import Schema

_SEEDS = 1 << 31


class Session:
    """A model, a conversation with it, and its last question; a context manager.

    What raises an error leaves the chat as it was.

    Args:
        name: the model, as the user named it.
        options: how it runs and answers.
        obtain: makes a name the path of a `.litertlm` file.
        stdout: gets the answers.
        stderr: gets what is said of them.
        tools: what the model may call.
        json_schema: what the answers are JSON of.

    Attributes:
        is_open: whether a model is loaded.
        last_answer: without its thoughts; empty where there is none.
    """

    def __init__(
        self,
        name: str,
        options: ChatOptions,
        obtain: Callable[[str], Path],
        stdout: TextIO,
        stderr: TextIO,
        *,
        shows_statistics: bool = False,
        is_quiet: bool = False,
        tools: Tools | None = None,
        json_schema: Schema | None = None,
    ) -> None:
        self.name = name
        self.options = options
        self._obtain = obtain
        self.last_answer = ""
        self._statistics: Statistics | None = None
        self._stdout = stdout
        self._stderr = stderr
        # Where the user looks.
        self._notes = stdout if stdout.isatty() and not stderr.isatty() else stderr
        self._shows_statistics = shows_statistics
        self._is_quiet = is_quiet
        self._tools = tools
        self._json_schema = json_schema
        self._loaded = ExitStack()
        self._conversation: Conversation | None = None
        self.is_open = False
        self._last_prompt: str | None = None
        self._before_last: list[dict[str, Any]] = []  # the messages before the last prompt
        self._own_files: set[Path] = set()

    def __enter__(self) -> Session:
        path = self._obtain(self.name)
        self._open(path, self.options, [])
        return self

    def __exit__(
        self,
        _type: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self._loaded.close()

    def note(self, text: str) -> None:
        """Say something that is no answer."""
        print(text, file=self._notes, flush=True)

    # Answers --------------------------------------------------------------------------------------

    def say(self, message: str) -> None:
        """Answer a message, with the text of the files that it mentions.

        Raises:
            OptionError: the message is too long, or one of its files cannot be read.
            EngineError: the engine failed.
        """
        if not self.options.raw:
            message = expanded(message)
        self._answer(message)

    def retry(self) -> None:
        """Answer the last message again: with the next seed, where answers are drawn at all."""
        if self._last_prompt is None:
            raise OptionError("/retry", "nothing has been asked yet", "ask something")
        options = self.options
        if self._model.is_greedy(options.sampling()):
            self.note("note: the likeliest token is always taken, so the answer stays the same")
        else:
            options = replace(options, seed=((options.seed or 0) + 1) % _SEEDS)
        self._begin(options, self._before_last)
        self._answer(self._last_prompt)

    def _answer(self, prompt: str) -> None:
        self._before_last, self._last_prompt = self._messages, prompt
        conversation = self._going_on
        try:
            answer(
                conversation,
                prompt,
                self._stdout,
                self._stderr,
                show_statistics=self._shows_statistics,
            )
        finally:
            # The engine sends U+FFFD where an answer was cut inside a character.
            self._statistics = conversation.statistics or self._statistics
            self.last_answer = conversation.said.strip("\n").rstrip("\ufffd")

    def copy(self) -> None:
        """Ask the terminal to put the last answer on the clipboard (OSC 52): through SSH, too."""
        if not self.last_answer:
            raise OptionError("/copy", "there is no answer yet", "ask something first")
        if not self._notes.isatty():
            raise OptionError("/copy", "no terminal is here to do it", "use /save")
        text = base64.b64encode(self.last_answer.encode("utf-8", "replace")).decode()
        self._notes.write(f"\x1b]52;c;{text}\x07")
        self.note(f"copied {len(self.last_answer)} characters, where the terminal allows it")

    @property
    def statistics(self) -> str:
        """How full the context is, and how fast the last answer was."""
        limit = self._model.context_length
        used = self._going_on.used_tokens
        about = ""
        if used is None:
            used, about = sum(self._count(text_of(message)) for message in self._all), "about "
        return (
            f"context: {about if used else ''}{used} of {limit or 'an unknown number of'} tokens\n"
            + (describe(self._statistics) if self._statistics else "no answer was measured yet")
        )

    # What can be changed --------------------------------------------------------------------------

    def change(self, **options: Any) -> None:
        """Go on with other options; the names are those of `ChatOptions`."""
        changed = replace(self.options, **options)
        changed.check()
        self._begin(changed, self._messages)

    def clear(self) -> None:
        """Forget everything but the system message."""
        self._begin(self.options, [])
        self._last_prompt, self.last_answer = None, ""

    def switch(self, name: str) -> None:
        """Go on with another model.

        The first one leaves memory before the other is loaded, and comes back where that fails.
        """
        path = self._obtain(name)
        messages, old = self._messages, self._model.path
        self._loaded.close()
        try:
            self._open(path, self.options, messages)
        except BaseException:
            self._open(old, self.options, messages)
            raise
        self.name = name

    def save(self, text: str) -> Path:
        """Write the chat to a file, which must be new, or one that was saved or loaded before."""
        self._require_history("/save")
        path = Path(text).expanduser()
        path = path if path.suffix else path.with_suffix(".json")
        if not self._messages:
            raise OptionError("/save", "nothing has been said yet", "ask something first")
        if path.exists() and path.resolve() not in self._own_files:
            raise OutputError(
                str(path), "it exists, and is not of this chat", "choose another name"
            )
        options = self.options
        numbers = {name: getattr(options, name) for name in Chosen.__dataclass_fields__}
        transcript.write(path, Transcript(self.name, self._all, Chosen(**numbers)))
        self._own_files.add(path.resolve())
        return path

    def load(self, text: str) -> Transcript:
        """Go on with the chat in a file, with its system message, and the sampling that it says."""
        self._require_history("/load")
        path = Path(text).expanduser()
        found = transcript.read(path)
        messages = found.messages
        system: str | None = None
        if messages and messages[0]["role"] == "system":
            system, messages = messages[0]["content"], messages[1:]
        told = {name: value for name, value in vars(found.chosen).items() if value is not None}
        asked = [i for i, message in enumerate(messages) if message["role"] == "user"]
        last = asked[-1] if asked else len(messages)
        before, is_answered = messages[:last], last != len(messages) - 1
        options = replace(self.options, system=system, **told)
        self._begin(options, messages if is_answered else before)
        self._before_last = before
        self._last_prompt = messages[last]["content"] if asked else None
        said = [text_of(message) for message in messages if message["role"] == "assistant"]
        self.last_answer = said[-1] if said else ""
        self._own_files.add(path.resolve())
        return found

    def _require_history(self, command: str) -> None:
        if not self._going_on.keeps_history:
            raise OptionError(
                command,
                "each text stands alone here, without a chat template",
                "choose a chat model, and leave --raw out",
            )

    # The model ------------------------------------------------------------------------------------

    def _open(self, path: Path, options: ChatOptions, messages: list[dict[str, Any]]) -> None:
        """Load a model and begin a conversation that goes on from `messages`."""
        self.is_open = False
        with passing_line("Loading the model ...", self._is_quiet or options.verbose):
            self._model: Model = self._loaded.enter_context(options.model(path, benchmark=True))
        try:
            self._begin(options, messages)
            if self._model.has_kept_packed:
                self.note(KEPT_NOTE)
            if not options.raw and not self._model.is_chat:
                self.note(BASE_MODEL_NOTE)
        except BaseException:
            self._loaded.close()
            raise
        self.is_open = True

    def _begin(self, options: ChatOptions, messages: list[dict[str, Any]]) -> None:
        """A new conversation that goes on from `messages`, instead of the one so far."""
        conversation = options.start(self._model, self._tools, self._json_schema)
        if conversation.keeps_history:
            conversation.history = conversation.history + messages
        if self._conversation is not None:
            self._conversation.close()
        self._conversation, self.options = conversation, options

    @property
    def _going_on(self) -> Conversation:
        assert self._conversation is not None, "the session is not open"
        return self._conversation

    @property
    def _all(self) -> list[dict[str, Any]]:
        return self._going_on.history

    @property
    def _messages(self) -> list[dict[str, Any]]:
        """Those of the chat, without the system's."""
        return [message for message in self._all if message["role"] != "system"]

    def _count(self, text: str) -> int:
        return len(self._model.tokenize(text))
