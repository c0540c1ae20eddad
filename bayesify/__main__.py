"""`python -m bayesify` is `bayesify`."""

from .cli.commands import main

main(prog_name="bayesify")
