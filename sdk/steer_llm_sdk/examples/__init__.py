"""Programs that show the in-process API at work, without a network: `python -m` and a name."""
