"""Any open language model into .litertlm."""

from converter.version import __version__

__all__ = ["__version__"]
