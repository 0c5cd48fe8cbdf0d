"""From measured operators to the numbers of a device's profile, and how good those are."""
