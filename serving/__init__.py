"""The artifact, batch scoring jobs, and the scoring service."""
