"""What can run an exported encoder's graph; each needs its own package, and none torch."""
