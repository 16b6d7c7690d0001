"""Carrying adapters over a base move (ReLoRA, arXiv 2606.02606, behind a statistical gate).

data.py        examples, and who may look at which          base.py       a base model in memory
tokens.py      examples -> tensors, answer losses           factors.py    low-rank factors beside its linear layers
scoring.py     the likeliest of all choices in one pass     generation.py greedy completions
forms.py       what a pair is asked for                     measure.py    what a metric makes of its answers
comparison.py  old and new pair answer until the gate decides             gate/   the paired sequential test (pure)
suitability.py whether data, adapter and base belong together             retention.py  what is left of the update
search.py      α and β by Bayesian optimisation, folding    anchor.py, tuning.py   anchored fine-tuning
exam.py, checkpoints.py   how a checkpoint does             teacher.py    the old pair labels prompts
relora.py, refresh.py, retrain.py   the rungs that learn    rungs.py      what each rung offers
ladder.py      which rung next (pure)                       item.py, repair.py     one adapter up the ladder
evidence.py    under which circumstances                    share.py      progress of a part of the work
command.py, folders.py   ``readapt adapt``
"""
