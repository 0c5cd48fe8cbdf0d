"""Many runs and a table: a scenario run, verified, generated from, compared with measurements."""
