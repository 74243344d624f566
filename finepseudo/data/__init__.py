"""From annotation files and videos to clips: manifest, split, plan, decode, transform."""
