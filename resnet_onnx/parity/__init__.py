"""Proof that runtimes compute the same function."""
