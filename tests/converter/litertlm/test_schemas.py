"""Google's schemas, entered without the rest of their package."""

from __future__ import annotations

import subprocess
import sys

from litert_lm_builder import litertlm_core as core

from converter.litertlm import schemas


def test_numbers_are_the_builder_s() -> None:
    assert schemas.MAGIC == core.HEADER_MAGIC_BYTES
    assert len(core.HEADER_MAGIC_BYTES) == schemas.VERSION_AT
    assert schemas.BLOCK_SIZE == core.BLOCK_SIZE
    assert schemas.HEADER_BEGIN == core.HEADER_BEGIN_BYTE_OFFSET
    assert schemas.HEADER_END_AT == core.HEADER_END_LOCATION_BYTE_OFFSET
    assert schemas.VERSION == (
        core.LITERTLM_MAJOR_VERSION,
        core.LITERTLM_MINOR_VERSION,
        core.LITERTLM_PATCH_VERSION,
    )


def test_the_package_is_not_run_and_its_modules_are_still_found() -> None:
    script = (
        "import sys\n"
        "from converter.litertlm import schemas\n"
        "assert 'absl' not in sys.modules\n"
        "from litert_lm_builder import litertlm_builder\n"
        "from litert_lm_builder.runtime.proto import llm_metadata_pb2\n"
        "assert llm_metadata_pb2 is schemas.llm_metadata_pb2\n"
        "litertlm_builder.LitertLmFileBuilder\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
