"""TensorRT and TensorRT-RTX: engines built from the ONNX files of a bundle."""
