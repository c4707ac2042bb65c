"""Which engine is the fastest of those that compute the same function: race, limits, confirmation, journal."""
