"""How a serving engine turns requests into steps: pure state machines, without a clock or a tensor."""
