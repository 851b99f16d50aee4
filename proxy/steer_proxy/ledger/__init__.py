"""The ledger: idempotency records and the log of every call, in SQL.

`protocol` says what a ledger does, `values` what goes in and comes out. `sqlite`, `postgres` and
`memory` do it.
"""
