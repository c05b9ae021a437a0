"""What a person runs from a checkout. A name without a suffix is a command; the modules are what the commands run."""
