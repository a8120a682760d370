"""What training is: the loop, what learns, and what they are made of."""
