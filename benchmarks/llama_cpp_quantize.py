"""A GGUF to Q8_0 with llama.cpp's own library: LIBRARY INPUT OUTPUT.

Apart from ctypes it imports nothing, so that next to nothing but llama.cpp is measured.
"""

import ctypes
import sys

_Q8_0 = 7  # LLAMA_FTYPE_MOSTLY_Q8_0


class _Parameters(ctypes.Structure):
    """llama_model_quantize_params of llama.cpp v0.5.0."""

    _fields_ = (
        ("nthread", ctypes.c_int32),
        ("ftype", ctypes.c_int32),
        ("output_tensor_type", ctypes.c_int32),
        ("token_embedding_type", ctypes.c_int32),
        ("allow_requantize", ctypes.c_bool),
        ("quantize_output_tensor", ctypes.c_bool),
        ("only_copy", ctypes.c_bool),
        ("pure", ctypes.c_bool),
        ("keep_split", ctypes.c_bool),
        ("dry_run", ctypes.c_bool),
        ("imatrix", ctypes.c_void_p),
        ("kv_overrides", ctypes.c_void_p),
        ("tt_overrides", ctypes.c_void_p),
        ("prune_layers", ctypes.c_void_p),
        ("max_buf_size", ctypes.c_size_t),
    )


def main(library: str, source: str, output: str) -> int:
    """Quantise with the library's default parameters, on all cores; returns its exit code."""
    llama = ctypes.CDLL(library)
    llama.llama_backend_init()
    llama.llama_model_quantize_default_params.restype = _Parameters
    parameters = llama.llama_model_quantize_default_params()
    parameters.ftype = _Q8_0
    llama.llama_model_quantize.argtypes = (
        ctypes.c_char_p,
        ctypes.c_char_p,
        ctypes.POINTER(_Parameters),
    )
    return int(
        llama.llama_model_quantize(source.encode(), output.encode(), ctypes.byref(parameters))
    )


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
