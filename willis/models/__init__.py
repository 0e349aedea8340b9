"""The trimodal network, its parts and the bundle that carries it."""
