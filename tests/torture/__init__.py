"""Keyed calls under torture, in the manner of Jepsen: many callers, faults, and a checker.

A run drives real sidecars with a seeded mix of calls while a nemesis kills and pauses them, takes
their database away and lets the provider fail. What every caller saw (`history`) and what the
provider saw (`provider_log`) is then held against the invariants (`checker`); what a caller did not
see the end of is unknown, never failed.

`python -m tests.torture` is the long run, `tests/acceptance/test_torture.py` a short one.
"""
