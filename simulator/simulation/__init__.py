"""Carries plans out on a SimPy clock. Nothing here has ever seen a tensor."""
