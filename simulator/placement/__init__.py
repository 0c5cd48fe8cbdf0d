"""Where each layer, weight and KV block lives, and the plan that follows from it."""
