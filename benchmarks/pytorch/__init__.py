"""A judge's training and prediction as a PyTorch user would write them."""
