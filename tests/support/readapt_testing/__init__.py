"""What the tests of several tiers share: a real control plane, a player of pods, recorders, faults, tiny models."""
