"""Take a ResNet from training to the fastest engine that still computes the same function, with the evidence."""

__version__ = "0.1.0"
