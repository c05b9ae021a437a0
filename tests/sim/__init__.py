"""A whole mesh in one process, in virtual time: the real machines, a simulated world around them."""
