"""What Steer costs, measured beside a bare aiohttp pass-through in the same run.

`python -m bench` compares whole processes under load; `python -m bench.micro` times single
decisions. docs/benchmarks.md says how to read both.
"""
