"""What all nodes share, as pure state machines: events and ticks in, effects out; no clock, no I/O, no randomness."""
