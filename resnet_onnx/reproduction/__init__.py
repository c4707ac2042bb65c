"""The ResNet paper's experiments, run again: what it claims, beside what comes out here."""
