"""What several tests share: daemons as processes, models, waiting."""
