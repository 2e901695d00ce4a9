"""What a student kept: tasks, fine-tuning, scores, tables and pictures."""
