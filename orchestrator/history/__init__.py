"""What tunnels carried, per tunnel and hour: collected from the supervisor, kept in a SQLite file, summed up by day."""
