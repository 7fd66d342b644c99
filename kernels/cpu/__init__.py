"""C++ kernels for CPUs: the sources of the extension, and `launch`, which loads it and asks it for an algorithm."""
