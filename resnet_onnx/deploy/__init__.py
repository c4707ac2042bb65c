"""Bundles: a model with its settings, preprocessing and evidence, in a folder that runs without this program."""
