"""Fine-grained semi-supervised action recognition by temporal alignment (FinePseudo)."""
