"""Attention-OCR in PyTorch for Ascend NPUs, CUDA GPUs and CPUs, equal number by number to the TensorFlow reference."""

__version__ = "0.1.0"
