"""Triton kernels. None in this version: GPUs run the PyTorch reference, and ``matconv_fast.info()`` says so."""
