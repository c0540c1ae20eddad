"""Folders with a model: a configuration beside weights, as transformers, peft and timm write them; and our own."""
