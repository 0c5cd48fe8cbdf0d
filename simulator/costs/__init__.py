"""Pure arithmetic on numbers and arrays: how long, how much energy, how much money."""
