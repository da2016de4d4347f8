"""atheris has wheels for CPython up to 3.13 on Linux on x86-64, and elsewhere there is no run of it."""

from __future__ import annotations

from importlib.util import find_spec

collect_ignore = [] if find_spec("atheris") else ["test_atheris.py"]
