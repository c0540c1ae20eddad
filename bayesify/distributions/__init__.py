"""Posteriors q(w), priors p(w) and the KL divergence between them."""
