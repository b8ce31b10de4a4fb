"""``serve``: a store behind the HTTP APIs that clients already speak."""
