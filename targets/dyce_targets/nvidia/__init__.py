"""Targets on NVIDIA GPUs: TensorRT and TensorRT-RTX, by themselves or as providers of onnxruntime, and CUDA."""
