"""`python -m cli`."""

import os
import sys

from cli.main import main

# Nothing here multiplies with numpy's BLAS, whose idle threads spin and cost a start 0.1 s.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
code = main()
sys.stderr.flush()
# The system takes memory back at once; the interpreter would take every object apart first.
os._exit(code)
