"""What holds for every test: no test is judged by a clock on the wall."""

from hypothesis import settings

settings.register_profile("tokensvc", deadline=None, print_blob=True)
settings.load_profile("tokensvc")
