"""Measurement: the clock, statistics, result records."""
