"""`python -m rcig_eqx`: the command line where its script is not on the path."""

from ._cli import run

run()
