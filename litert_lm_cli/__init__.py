"""Open language models into .litertlm, and a chat with the result: for programs and notebooks.

    from litert_lm_cli import chat, convert

    path = convert("my-finetune", quantize="dynamic_int4")
    with chat(path) as model:
        print(model.ask("What is the capital of France?"))

Every argument is an option of the command line under the same name, with the same default. What
fails on purpose raises a kind of `LiteRTLMError`. Nothing goes to stdout, and no signal is handled.
"""

from pkgutil import extend_path

from converter.errors import (
    EngineError,
    LiteRTLMError,
    OptionError,
    OutputError,
    SourceError,
    UnsupportedError,
)
from converter.version import __version__
from litert_lm_cli._chat import Chat, chat
from litert_lm_cli._convert import convert, plan

# The official client's package has the same name, and no __init__.py: ours would hide it.
__path__ = extend_path(__path__, __name__)

__all__ = [
    "Chat",
    "EngineError",
    "LiteRTLMError",
    "OptionError",
    "OutputError",
    "SourceError",
    "UnsupportedError",
    "__version__",
    "chat",
    "convert",
    "plan",
]
