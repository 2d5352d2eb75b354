"""What an experiment is."""

LATENCY_REPEATS = 20
"""How often a model's latency is timed if nothing else is said."""
