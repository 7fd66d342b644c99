"""C++ kernels for CPUs: the extension's sources, and `launch`, which loads it and decides what it should be given."""
