"""How a store of an earlier version becomes one of this version: one Alembic revision a change.

A new revision stands in `versions/`, its number in `schema.REVISION`; a test holds the two ways to
a current store, making it and upgrading one of 0.6.1, to the same tables.
"""
