"""Pictures of recordings, benches, replays and model folders: their numbers, and how they are drawn."""
