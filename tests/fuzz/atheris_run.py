"""atheris (libFuzzer for Python) on token inspection: `make fuzz SECONDS=300`.

It starts from the inputs in `corpus/`, keeps what reaches new code in the folder that it is given, and
ends with an exit code other than 0 at the first input for which something does not hold; that input is
left there as `crash-...`. Arguments are libFuzzer's own. `python -m tests.fuzz.atheris_run FOLDER -runs=1000`
"""

from __future__ import annotations

import sys

import atheris

from tokensvc.telemetry.logging import configure_logging

# Only what is imported here tells the fuzzer where it has been.
with atheris.instrument_imports(include=["tokensvc.tokens", "tokensvc.http.inspection", "json"]):
    from tests.fuzz.inspection import CORPUS, look_into
    from tokensvc.tokens.limits import MAX_TOKEN_CHARS


def main(arguments: list[str]) -> None:
    """Fuzz until the fuzzer ends the process."""
    configure_logging("error", "json", sys.stderr)
    given = [
        f"-max_len={MAX_TOKEN_CHARS + 100}",
        f"-dict={CORPUS.with_suffix('.dict')}",
        "-rss_limit_mb=1024",
        "-timeout=10",
    ]
    atheris.Setup([sys.argv[0], *given, *arguments, str(CORPUS)], look_into)
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1:])
