"""`python -m tokensvc` is `tokensvc`."""

from tokensvc.cli import main

main()
