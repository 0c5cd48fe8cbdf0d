"""`python -m simulator` is `placewright`."""

from simulator.cli import main

main()
