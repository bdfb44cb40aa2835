"""The parts of a run's page: what is read, what is told, and the files that the page loads."""
