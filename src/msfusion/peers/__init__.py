"""One participant among peers: the same round across machines, without a server."""
