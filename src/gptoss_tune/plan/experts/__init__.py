"""What the expert layer needs: rows at work, decoded weights, and the tile of tokens that fits."""
