"""One module per revision, named `r<four digits>_<what it brings>`; a published one never changes."""
