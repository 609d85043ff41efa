"""Past one machine, on an engine that is there: Ray's tasks prepare and score parts of a log, and carry out trials."""
