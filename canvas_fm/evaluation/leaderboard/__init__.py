"""A leaderboard of submissions on a benchmark with hidden truth."""
