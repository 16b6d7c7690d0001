"""LoRA from nothing but examples.

training.py   a new adapter, stopped early on validation examples
score.py      how good an adapter without a reference is: beside the base alone, on the gate's examples
folders.py    the same on directories
command.py    ``readapt train``
"""
