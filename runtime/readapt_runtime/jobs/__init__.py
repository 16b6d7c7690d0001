"""What runs inside a Job's container: one request in, one result in the store, one summary for the operator.

main.py       entry point: request, signals, exit codes
recorded.py   answers that the store already has; no torch
summary.py    the termination message
fetch/        sources -> artifacts
drift.py      two bases -> their drift
extract.py    base + checkpoint -> a gated variant
train.py      base + examples -> a variant
learn.py      base + the examples of task after task -> a variant
variant.py    what the two have in common: publishing with a probe
adapt.py      variants of an old base -> gated variants of a new one
"""
