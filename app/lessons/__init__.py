"""The lessons of the Learn page: the layers that they look at, and what they say about them."""
