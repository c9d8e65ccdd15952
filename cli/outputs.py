"""What FILE names, where something is looked at that was made already."""

from __future__ import annotations

from pathlib import Path

from converter.errors import SourceError

FILE_HELP = "a .litertlm file, a folder of Core ML packages, or a model's name in list"


def output_of(named: Path) -> Path:
    """A file or folder on this disk, or else what the models folder has of a model.

    That is its `.litertlm` file, or its packages where it has none.

    Raises:
        SourceError: there is neither, or it cannot be read.
    """
    from converter.checkpoint.files import status_of
    from converter.checkpoint.model_store import find_model
    from converter.checkpoint.sources import SUFFIX, models_dir

    if status_of(named) is not None:
        return named
    if named.suffix in (SUFFIX, ".mlpackage", ".mlmodelc") or named.is_absolute():
        raise SourceError(str(named), "there is no such file", f"pass {FILE_HELP}")
    try:
        model = find_model(str(named), models_dir())
    except SourceError as error:
        raise SourceError(
            error.what, f"there is no such file, and {error.why}", error.fix
        ) from None
    converted = [*model.bundles, *(part for part in model.parts if part == model.packages)]
    if not converted:
        raise SourceError(
            model.name, "it is not converted yet", f"litert-lm-cli convert {model.name}"
        )
    return converted[0]
