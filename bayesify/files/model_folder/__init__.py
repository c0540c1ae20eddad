"""Folders with a model: a configuration beside weights, as libraries write them; and our own."""
