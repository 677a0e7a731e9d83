"""What the customer allows and may ask for."""
