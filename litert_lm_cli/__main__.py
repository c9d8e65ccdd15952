"""`litert-lm-cli` as it is installed, and `python -m litert_lm_cli`."""

from cli.__main__ import main

if __name__ == "__main__":
    main()
