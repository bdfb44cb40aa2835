"""The parts of a run's report in HTML: what is read, what is told, and the files that a page loads."""
