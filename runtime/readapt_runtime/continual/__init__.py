"""Adapters that learn task after task without rehearsal (SD-LoRA, arXiv 2501.13198).

    W = W0 + Σ_k α_km · D_km,   ‖D_km‖_F = 1        task k, module m

Earlier directions D are frozen; every magnitude α and the newest task's factors are learned.

blocks.py       what is learned so far: directions and magnitudes, task by task; folding to one LoRA
freezing.py     from a finished task's factors to a direction; reduced rank; distillation
learning.py     one task
losses.py       what is learned on: choosing among the task's answers, and judging earlier ones as before
sequence.py     task after task, and how much is remembered
refit.py        the magnitudes again, on another base
files.py        the blocks beside a PEFT folder
folders.py      the learn Job's work on directories
command.py      ``readapt learn``
"""
