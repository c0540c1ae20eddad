"""What example inputs tell of a model: how often its layers are called, and where the examples of a batch are."""
