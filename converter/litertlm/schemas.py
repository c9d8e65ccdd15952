"""Google's generated schemas of a `.litertlm` file, and the numbers of its first bytes.

The schemas are part of `litert_lm_builder`, whose start imports the parts of a command-line tool:
50 ms, a fifth of what `inspect` takes. So the package is put in its place here without being run;
its modules are found as ever, only the names that its start would give it are missing.
"""

from __future__ import annotations

import importlib.util
import sys

_PACKAGE = "litert_lm_builder"
if _PACKAGE not in sys.modules:
    _spec = importlib.util.find_spec(_PACKAGE)
    assert _spec is not None
    sys.modules[_PACKAGE] = importlib.util.module_from_spec(_spec)

from litert_lm_builder import litertlm_header_schema_py_generated as header  # noqa: E402
from litert_lm_builder.runtime.proto import executor_metadata_pb2, llm_metadata_pb2  # noqa: E402

# From litert_lm_builder's litertlm_core, which needs the rest of the package.
MAGIC = b"LITERTLM"
VERSION = (1, 7, 0)
VERSION_AT = 8  # three numbers of four bytes
HEADER_END_AT = 24  # eight bytes: where the header ends
HEADER_BEGIN = 32
BLOCK_SIZE = 16 * 1024  # sections begin at multiples of it

__all__ = [
    "BLOCK_SIZE",
    "HEADER_BEGIN",
    "HEADER_END_AT",
    "MAGIC",
    "VERSION",
    "VERSION_AT",
    "executor_metadata_pb2",
    "header",
    "llm_metadata_pb2",
]
