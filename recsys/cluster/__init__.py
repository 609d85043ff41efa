"""Past one machine, on an engine that is there: parts of a log are prepared, and scored, by Ray's tasks and actors."""
