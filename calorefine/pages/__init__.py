"""Records in, pictures and HTML out; no statistic is computed here."""
