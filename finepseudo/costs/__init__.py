"""What a run costs, by arithmetic over unit costs, before anything is started. No torch, no Ray."""
