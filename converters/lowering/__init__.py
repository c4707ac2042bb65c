"""The portable int8 file in the form that each runtime runs fastest: the same numbers, one file per runtime here.

A lowering is made when a runtime opens the portable file and is kept in the cache by hash; the user's file is never
touched. ``lower`` is all that others need.
"""

from converters.lowering.lower import Lowering, lower, lowered_file

__all__ = ["Lowering", "lower", "lowered_file"]
