"""From the model's output to results a person can use, and pictures of them."""
