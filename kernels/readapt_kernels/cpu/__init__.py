"""Decode on CPUs in C++: what a layer does besides its matrix products, without a gather or a loop in Python.

``build`` compiles the sources for the instruction sets that a processor may have, ``library`` loads the one that fits
and wraps its functions for tensors. Plain C symbols, called through ctypes: no header of torch is involved, so one
library serves every version of torch and Python.
"""
