"""Models and weights, in from files and out to files."""
