"""What a run says of itself: metrics, trackers, progress, traces."""
