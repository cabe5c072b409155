"""What both databases share: placeholders, rows, and loading rows."""
