"""Experts in the memory of a graphics processor, above those in RAM and on SSD."""
