"""Triton kernels and CUDA graphs; imported only where an engine runs on a GPU, or in tests through the interpreter."""
