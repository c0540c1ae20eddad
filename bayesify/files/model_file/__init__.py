"""bayesify's own files: tensors in the layout of safetensors, everything else as JSON beside them."""
