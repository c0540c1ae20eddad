"""Programs: models that are a graph of operators, from torch.export or torch.fx."""
