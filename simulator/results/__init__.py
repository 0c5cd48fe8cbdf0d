"""What a run leaves behind: frozen facts, and the figures people read derived from them."""
