"""The decoder: its sizes, its paged cache, its layers, its heads."""
