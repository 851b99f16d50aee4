"""Steer's decisions: pure functions over frozen values, with no clock, no dice and no I/O.

Each function takes what is known, time and chance included, and returns what to do as a value;
`steer_proxy` acts on it.
"""
