"""Native kernels, imported as ``matconv_fast.kernels``. Nothing in here imports anything of its parent package."""
