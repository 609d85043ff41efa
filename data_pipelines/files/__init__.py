"""Which files a location means, and how files of each format are read as one lazy frame."""
