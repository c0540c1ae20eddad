"""Decides what happens to each module of a model; changes nothing."""
