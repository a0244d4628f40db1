"""Floor 1: numerics. Each kernel is one readable reference, one fast version and one test that holds them together."""
