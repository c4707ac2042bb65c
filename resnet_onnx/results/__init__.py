"""What commands print with ``--json`` and save with ``--save``: frozen values, read and written by msgspec.

A type stands here and what makes one stands beside its producer. ``docs/result-schema.md`` describes the files.
"""
