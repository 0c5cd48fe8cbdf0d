"""From files to frozen records of plain SI floats, with the position and the source of every figure."""
