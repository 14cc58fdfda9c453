"""Speed: synthetic models with the sizes of real ones, prompt and decode speed, and the bandwidth in the same run."""
