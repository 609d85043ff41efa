"""More than one machine: Ray tasks prepare and score parts of a log, and run trials."""
