"""Carrying adapters over a base move (ReLoRA, arXiv 2606.02606, behind a statistical gate).

data.py        examples, and who may look at which          base.py       a base model in memory
tokens.py      examples -> tensors, answer losses           factors.py    low-rank factors beside its linear layers
scoring.py     Accuracy, all choices in one pass            comparison.py old and new pair answer until the gate decides
gate.py        the paired sequential test (pure)            retention.py  how much of the base update survives
search.py      α and β by Bayesian optimisation, folding    anchor.py, tuning.py   anchored fine-tuning
relora.py      the ReLoRA rung                              ladder.py     which rung next (pure)
repair.py      one adapter up the ladder                    evidence.py   under which circumstances
command.py, folders.py   ``readapt adapt``                  share.py      progress of a part of the work
"""
