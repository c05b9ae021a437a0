"""Real daemons on a LAN of network namespaces."""
