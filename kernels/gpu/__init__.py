"""Triton kernels and their launchers. ``launch`` and ``launch_loss`` are called from above; ``choose`` is in `launch`.

Structures are arguments. A kernel takes the tensors of a rule, the stop criteria, sizes, strides and its block shape as
(named) tuples, which is why none has more than fourteen parameters. Triton 3.6.0, 3.7.1 and 3.9.0 were tried, in the
interpreter and compiled ahead of time for sm_80, sm_90, sm_100 and gfx942:

* Tuples of tensors, integers, floats and None work, nested too, and as results and loop variables. So does ``len``.
* ``tl.constexpr`` entries work, as in the block shapes. A named tuple of plain numbers as a ``tl.constexpr`` parameter
  works with 3.9.0 alone.
* ``do_not_specialize`` does not reach the entries of a tuple: an integer whose value would make variants of a kernel,
  such as the number of columns of the sums, is a parameter of its own.
* Floats in a tuple are float32. A parameter that must be float64 stands alone, annotated ``tl.float64``.
* Tensor descriptors stand alone: the launcher of 3.6.0 does not find them in a tuple.
* ``a, (b,) = f()`` does not compile with 3.6.0 and 3.7.1; one level of unpacking does.

A tuple adds 1 to 2 us to the host's time of a launch, which is 50 to 80 us.
"""
