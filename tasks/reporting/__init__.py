"""The document of the stage compare as a page, a summary and metrics.json; no statistic is computed here."""
