"""What the stores that keep their records in this process share."""
