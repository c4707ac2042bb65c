"""The networks of the ResNet paper: definitions, catalog, weights."""
