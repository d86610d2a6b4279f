"""What is measured with the network, each pass once."""
