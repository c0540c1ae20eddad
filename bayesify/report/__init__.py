"""How a plan looks: in a terminal, in a notebook, as JSON."""
