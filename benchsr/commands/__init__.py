"""What the commands do, each in a module: they set evaluation to work and hand its results to leaderboard."""
