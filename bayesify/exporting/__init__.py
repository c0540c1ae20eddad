"""A converted model as a file for another runtime: ONNX, or a program of torch.export."""
