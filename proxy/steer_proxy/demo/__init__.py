"""`steer demo`: a provider that misbehaves, the sidecar, and the official SDKs, on one machine.

Nothing leaves this machine and no key is needed. Each scenario (`scenarios`) is played on a stage
of its own (`stage`): scripted providers (`provider`, `behaviours`), a `Sidecar` between them and
the SDKs (`callers`), and beside it the same call without Steer. What happens is told as it happens
(`story`) and shown by `screen` or, without a terminal, by `plain`. A scenario that does not end as
it promises makes the exit code 1, so the demo is also a test of the whole.
"""
