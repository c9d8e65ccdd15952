"""`python -m cli`."""

import os
import sys
from typing import NoReturn


def command() -> int:
    """The command line, in the supervised process."""
    # What multiplies with numpy's BLAS (preflight) has threads itself; those of BLAS spin when they
    # are idle, and cost a start 0.1 s.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    # Else huggingface_hub asks the hub for a list of coding agents first, to say which one runs it.
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from cli.main import main  # here, as the supervisor needs none of it

    return main()


def main() -> NoReturn:
    """The command line, in a process of its own; ends this one with its exit code."""
    try:
        from cli.supervisor import supervised

        code = supervised(command)
    except KeyboardInterrupt:  # before anything has begun
        print("error: interrupted, at your request, run it again", file=sys.stderr)
        code = 130
    if sys.stderr is not None:
        sys.stderr.flush()
    # The system takes memory back at once; the interpreter would take every object apart first.
    os._exit(code)


if __name__ == "__main__":
    main()
