"""`python -m bayesify` is `bayesify`."""

from .cli import main

main(prog_name="bayesify")
