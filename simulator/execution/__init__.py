"""Carry plans out on a real PyTorch transformer: the only room that imports torch."""
