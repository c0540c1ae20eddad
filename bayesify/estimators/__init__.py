"""The estimators as tensor mathematics: products, noise, Flipout and LRT. Nothing here knows an nn.Module."""
